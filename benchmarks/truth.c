/* An echo service that is the ground truth for clients: it answers with known delays and faults,
   and logs what it really did.

   usage: truth tcp|udp|unix:PATH [NAME=VALUE]...

   delay=US                 answer after this delay (all times in microseconds)
   slow=N slow_delay=US     each Nth message gets this delay instead
   ramp=US ramp_count=N     add 1, 2, ... N, ... 2, 1 times this delay, and again
   freeze=US freeze_after=US
                            answer nothing for this time, beginning this time after the first
                            message, and then everything
   drop_requests=N          UDP: drop each Nth request
   drop_replies=N           UDP: drop each Nth reply
   rate=N                   UDP: drop requests above N a second: a token bucket that holds
                            the tokens of 10 ms, and at least one
   duplicate=N              UDP: send each Nth reply twice
   damage=N                 flip a bit in the middle of each Nth reply
   size=BYTES               the messages of a byte stream (64)
   upstream=PORT            UDP: relay to this port of 127.0.0.1 instead of answering; delays and
                            faults apply to the replies from there

   It prints "listening on", and at SIGTERM one line of JSON. A delay counts from the arrival in
   the kernel (SO_TIMESTAMPNS; UNIX sockets have none: from the receive call) to the send call.
   A datagram that this service's own kernel dropped is counted in "dropped_here". */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define LARGEST 65536
#define BATCH 64       /* messages received before those that are due are sent */
#define SPIN 50000     /* nanoseconds before a message is due in which the service does not sleep */
#define BUFFER (64 << 20)
#define SO_MEMINFO 55  /* the ninth number is the count of drops (linux/sock_diag.h) */

static long delay, slow, slow_delay, ramp, ramp_count, freeze, freeze_after, drop_requests,
    drop_replies, rate, duplicate, damage, size = 64, upstream;
static const struct {
    const char *name;
    long *value;
} options[] = {
    {"delay", &delay},
    {"slow", &slow},
    {"slow_delay", &slow_delay},
    {"ramp", &ramp},
    {"ramp_count", &ramp_count},
    {"freeze", &freeze},
    {"freeze_after", &freeze_after},
    {"drop_requests", &drop_requests},
    {"drop_replies", &drop_replies},
    {"rate", &rate},
    {"duplicate", &duplicate},
    {"damage", &damage},
    {"size", &size},
    {"upstream", &upstream},
};
#define OPTIONS (sizeof options / sizeof *options)

/* A socket. `partial` is the incomplete message of a byte stream; `client` is the address to
   which the replies of an upstream socket go. */
struct source {
    enum { SIGNAL, LISTENER, STREAM, SERVICE, UPSTREAM } kind;
    int fd;
    int closed;
    long held; /* messages that wait for their time */
    int64_t last_due;
    size_t partial_length;
    char *partial;
    struct sockaddr_in client;
    struct source *next;
};

/* A reply that waits for its time. */
struct message {
    int64_t due, arrived;
    uint64_t order; /* of arrival */
    struct source *source;
    struct sockaddr_in to;
    size_t length;
    char data[];
};

static struct message **heap;
static size_t waiting, heap_room;
static struct source *service, *relays;
static int epoll;
static int64_t frozen_from, offset;

/* What the service did. */
static long requests, replies, dropped_requests, dropped_replies, duplicated, damaged, reordered;
static uint64_t arrivals, last_order;
static double *delays, sum;
static size_t delays_room;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static int64_t clock_of(clockid_t id) {
    struct timespec t;
    clock_gettime(id, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static int64_t now(void) { return clock_of(CLOCK_MONOTONIC); }

/* The wall clock minus the monotonic one; of many readings the one that took the least time. It
   changes only if the wall clock is stepped. */
static int64_t clock_offset(void) {
    int64_t found = 0, shortest = INT64_MAX;
    for (int i = 0; i < 1000; i++) {
        int64_t began = now(), wall = clock_of(CLOCK_REALTIME), took = now() - began;
        if (took < shortest) {
            shortest = took;
            found = wall - began - took / 2;
        }
    }
    return found;
}

static int each(long every, long number) { return every > 0 && number % every == 0; }

static struct source *watch(int kind, int fd) {
    struct source *source = calloc(1, sizeof *source);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = source};
    if (!source) die("calloc");
    source->kind = kind;
    source->fd = fd;
    if (kind == STREAM && !(source->partial = malloc(size))) die("malloc");
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
    return source;
}

/* The heap: the earliest message first, and of two that are due together, the older one. */

static int before(const struct message *a, const struct message *b) {
    return a->due != b->due ? a->due < b->due : a->order < b->order;
}

static void push(struct message *message) {
    size_t i = waiting++;
    if (waiting > heap_room) {
        heap_room = 2 * heap_room + 1024;
        if (!(heap = realloc(heap, heap_room * sizeof *heap))) die("realloc");
    }
    for (; i && before(message, heap[(i - 1) / 2]); i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
    heap[i] = message;
    message->source->held++;
}

static struct message *pop(void) {
    struct message *first = heap[0], *last = heap[--waiting];
    size_t i = 0, child;
    while ((child = 2 * i + 1) < waiting) {
        if (child + 1 < waiting && before(heap[child + 1], heap[child])) child++;
        if (!before(heap[child], last)) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = last;
    first->source->held--;
    return first;
}

/* Replies. */

static void release(struct source *source) {
    if (!source->closed || source->held) return;
    close(source->fd);
    free(source->partial);
    free(source);
}

static void log_delay(const struct message *message, int64_t sent) {
    if ((size_t)replies == delays_room) {
        delays_room = 2 * delays_room + 65536;
        if (!(delays = realloc(delays, delays_room * sizeof *delays))) die("realloc");
    }
    sum += delays[replies++] = (sent - message->arrived) / 1e9;
    if (message->order < last_order) reordered++;
    else last_order = message->order;
}

static void answer(struct message *message, int copies) {
    const struct sockaddr *to = (struct sockaddr *)&message->to;
    int is_stream = message->source->kind == STREAM;
    log_delay(message, now());
    while (copies--)
        if (is_stream) send(message->source->fd, message->data, message->length, MSG_NOSIGNAL);
        else sendto(service->fd, message->data, message->length, 0, to, sizeof message->to);
}

static int64_t delay_of(long number) {
    long step = ramp_count ? number % (2 * ramp_count) : 0;
    long steps = step < ramp_count ? step + 1 : 2 * ramp_count - step;
    return 1000 * (each(slow, number + 1) ? slow_delay : delay + ramp * steps);
}

/* Decide the time of a reply. */
static void hold(struct source *source, const struct sockaddr_in *to, const char *data,
                 size_t length, int64_t arrived) {
    struct message *message = malloc(sizeof *message + length);
    if (!message) die("malloc");
    if (!arrivals && freeze) frozen_from = arrived + 1000 * freeze_after;
    message->due = arrived + delay_of(arrivals);
    if (freeze && arrived >= frozen_from && message->due < frozen_from + 1000 * freeze)
        message->due = frozen_from + 1000 * freeze;
    if (source->kind == STREAM) { /* the order of a byte stream does not change */
        if (message->due < source->last_due) message->due = source->last_due;
        source->last_due = message->due;
    }
    message->order = ++arrivals;
    message->arrived = arrived;
    message->source = source;
    message->to = *to;
    message->length = length;
    memcpy(message->data, data, length);
    if (each(damage, arrivals)) {
        message->data[length / 2] ^= 1;
        damaged++;
    }
    push(message);
}

static void send_due(void) {
    while (waiting && heap[0]->due <= now()) {
        static long decided;
        struct message *message = pop();
        decided++;
        if (each(drop_replies, decided)) {
            dropped_replies++;
        } else {
            int copies = 1 + each(duplicate, decided);
            duplicated += copies - 1;
            answer(message, copies);
        }
        release(message->source);
        free(message);
    }
}

/* Requests. */

static struct source *relay_of(const struct sockaddr_in *client) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int on = 1, fd, room = BUFFER;
    struct source *relay;
    for (relay = relays; relay; relay = relay->next)
        if (!memcmp(&relay->client, client, sizeof *client)) return relay;
    to.sin_port = htons(upstream);
    fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to)) die("upstream");
    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room);
    setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on);
    relay = watch(UPSTREAM, fd);
    relay->client = *client;
    relay->next = relays;
    return relays = relay;
}

/* Receive, and set the time of arrival. */
static ssize_t receive(struct source *source, char *data, size_t room, struct sockaddr_in *from,
                       int64_t *arrived) {
    char control[256];
    struct iovec part = {data, room};
    struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control,
                            .msg_controllen = sizeof control};
    ssize_t length;
    if (source->kind == SERVICE) {
        header.msg_name = from;
        header.msg_namelen = sizeof *from;
    }
    length = recvmsg(source->fd, &header, MSG_DONTWAIT);
    *arrived = now();
    if (length <= 0) return length;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&header); c; c = CMSG_NXTHDR(&header, c))
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_TIMESTAMPNS) {
            struct timespec stamp;
            memcpy(&stamp, CMSG_DATA(c), sizeof stamp);
            *arrived = stamp.tv_sec * INT64_C(1000000000) + stamp.tv_nsec - offset;
        }
    return length;
}

/* Return whether the token bucket has no token for a request. */
static int is_above_rate(int64_t arrived) {
    static int64_t last;
    static double tokens;
    double most = rate > 100 ? rate / 100.0 : 1;
    if (!rate) return 0;
    tokens += (arrived - last) * (rate / 1e9);
    if (tokens > most) tokens = most;
    last = arrived;
    if (tokens < 1) return 1;
    tokens--;
    return 0;
}

/* Return whether there may be more. */
static int read_datagrams(struct source *source) {
    static char data[LARGEST];
    struct sockaddr_in from = source->client;
    int64_t arrived;
    ssize_t length;
    for (int i = 0; i < BATCH; i++) {
        if ((length = receive(source, data, sizeof data, &from, &arrived)) < 0) return 0;
        if (source->kind == UPSTREAM) {
            hold(source, &from, data, length, arrived);
            continue;
        }
        if (each(drop_requests, ++requests) || is_above_rate(arrived)) dropped_requests++;
        else if (upstream) send(relay_of(&from)->fd, data, length, 0);
        else hold(source, &from, data, length, arrived);
    }
    return 1;
}

static void read_stream(struct source *source) {
    static const struct sockaddr_in nowhere;
    int64_t arrived;
    for (int i = 0; i < BATCH; i++) {
        /* One message a call, because each has its own time of arrival. */
        ssize_t length = receive(source, source->partial + source->partial_length,
                                 size - source->partial_length, NULL, &arrived);
        if (length < 0 && errno == EAGAIN) return;
        if (length <= 0) {
            epoll_ctl(epoll, EPOLL_CTL_DEL, source->fd, NULL);
            source->closed = 1;
            release(source);
            return;
        }
        source->partial_length += length;
        if (source->partial_length < (size_t)size) continue;
        source->partial_length = 0;
        requests++;
        hold(source, &nowhere, source->partial, size, arrived);
    }
}

static void welcome(const struct source *listener) {
    int on = 1, fd = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0) return; /* the client has closed */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on);
    watch(STREAM, fd);
}

/* The log. */

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The nearest-rank percentile. */
static double percentile(double part) {
    double rank = part * replies;
    size_t before = rank;
    if (before == rank && before) before--;
    return replies ? delays[before] : 0;
}

static unsigned drops_of(int fd) {
    unsigned numbers[9] = {0};
    socklen_t length = sizeof numbers;
    getsockopt(fd, SOL_SOCKET, SO_MEMINFO, numbers, &length);
    return numbers[8];
}

static void report(void) {
    while (service->kind == SERVICE && read_datagrams(service)) {} /* what came before SIGTERM */
    unsigned drops = service->kind == SERVICE ? drops_of(service->fd) : 0;
    for (struct source *relay = relays; relay; relay = relay->next) drops += drops_of(relay->fd);
    if (replies) qsort(delays, replies, sizeof *delays, compare);
    printf("{\"requests\": %ld, \"replies\": %ld, \"waiting\": %zu, \"dropped_requests\": %ld, "
           "\"dropped_replies\": %ld, \"dropped_here\": %u, \"duplicated\": %ld, "
           "\"damaged\": %ld, \"reordered\": %ld, \"delay_seconds\": {\"min\": %.9f, "
           "\"mean\": %.9f, \"p50\": %.9f, \"p90\": %.9f, \"p99\": %.9f, \"max\": %.9f}}\n",
           requests, replies, waiting, dropped_requests, dropped_replies, drops, duplicated,
           damaged, reordered, percentile(0), replies ? sum / replies : 0, percentile(0.5),
           percentile(0.9), percentile(0.99), percentile(1));
    exit(0);
}

static void listen_on(const char *where) {
    struct sockaddr_in internet = {.sin_family = AF_INET,
                                   .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_un local = {.sun_family = AF_UNIX};
    int is_unix = !strncmp(where, "unix:", 5), is_udp = !strcmp(where, "udp");
    int on = 1, room = BUFFER, kind = (is_udp ? SOCK_DGRAM : SOCK_STREAM) | SOCK_CLOEXEC;
    struct sockaddr *address = is_unix ? (struct sockaddr *)&local : (struct sockaddr *)&internet;
    socklen_t length = is_unix ? sizeof local : sizeof internet;
    int fd = socket(is_unix ? AF_UNIX : AF_INET, kind, 0);
    if (is_unix) {
        strncpy(local.sun_path, where + 5, sizeof local.sun_path - 1);
        unlink(local.sun_path);
    }
    if (fd < 0 || bind(fd, address, length)) die("bind");
    if (is_udp) {
        if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room))
            setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
        setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on);
    } else if (listen(fd, SOMAXCONN)) {
        die("listen");
    }
    service = watch(is_udp ? SERVICE : LISTENER, fd);
    if (is_unix) {
        printf("listening on %s\n", where);
    } else {
        if (getsockname(fd, address, &length)) die("getsockname");
        printf("listening on %s 127.0.0.1:%d\n", where, ntohs(internet.sin_port));
    }
    fflush(stdout);
}

static void parse(const char *argument) {
    const char *equals = strchr(argument, '=');
    for (size_t i = 0; equals && i < OPTIONS; i++)
        if (strlen(options[i].name) == (size_t)(equals - argument) &&
            !strncmp(options[i].name, argument, equals - argument)) {
            *options[i].value = atol(equals + 1);
            return;
        }
    fprintf(stderr, "truth: %s: unknown\n", argument);
    exit(2);
}

/* Sleep until a socket is readable or a message is due; the last moment is not slept. */
static int wait_for(struct epoll_event *events, int room) {
    int64_t left = waiting ? heap[0]->due - now() - SPIN : -1;
    struct timespec timeout = {0};
    if (left > 0) {
        timeout.tv_sec = left / 1000000000;
        timeout.tv_nsec = left % 1000000000;
    }
    return epoll_pwait2(epoll, events, room, waiting ? &timeout : NULL, NULL);
}

int main(int argc, char **argv) {
    struct epoll_event events[64];
    sigset_t stops;
    if (argc < 2) {
        fprintf(stderr, "usage: truth tcp|udp|unix:PATH [NAME=VALUE]...\n");
        return 2;
    }
    for (int i = 2; i < argc; i++) parse(argv[i]);
    sigemptyset(&stops);
    sigaddset(&stops, SIGTERM);
    sigprocmask(SIG_BLOCK, &stops, NULL);
    prctl(PR_SET_TIMERSLACK, 1); /* nanosecond */
    offset = clock_offset();
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0) die("epoll");
    watch(SIGNAL, signalfd(-1, &stops, SFD_CLOEXEC));
    listen_on(argv[1]);
    for (;;) {
        int n = wait_for(events, sizeof events / sizeof *events);
        if (n < 0 && errno != EINTR) die("epoll_wait");
        for (int i = 0; i < n; i++) {
            struct source *source = events[i].data.ptr;
            if (source->kind == SIGNAL) report();
            else if (source->kind == LISTENER) welcome(source);
            else if (source->kind == STREAM) read_stream(source);
            else read_datagrams(source);
        }
        send_due();
    }
}
