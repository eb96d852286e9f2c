/* The load of speed.py and growth.py: load PORT HOW CONNECTIONS SIZE MILLISECONDS MOST

   Connects to 127.0.0.1, and compares every byte that comes back. HOW is

   echo   each connection sends a message of SIZE bytes, waits for its reply, and repeats
   short  each connection connects, sends one message, receives its reply, half-closes, waits
          until the server closes, closes, and repeats
   idle   each connection exchanges one message, and stays open
   silent each connection stays open without a byte
   stall  each connection sends SIZE bytes, or as many as the kernel accepts, and does not read
   flood  all connections except the first send without end, and read; the first sends a
          message every 5 ms, or as soon as the reply to the last one has come
   udp    as echo, over UDP: a lost datagram ends the program

   The program prints a line when it is ready. Then each line of input starts a run: of
   MILLISECONDS, or of MOST messages or connections (0: any number). Each run prints a line:
   the number of messages or connections, the duration of the run and its own CPU time in
   nanoseconds, and the 50th and 99th percentile of the times of all runs in nanoseconds. The
   program ends at the end of its input. After an error it prints one line on stderr, and
   exits with status 1. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum {
    LIMIT = 10,           /* seconds after which a reply is given up */
    WHOLE = 600,          /* seconds after which the program is killed */
    PERIOD = 65521,       /* bytes after which the pattern repeats; a prime, so that a buffer */
                          /* that is lost or sent twice shows as a wrong byte */
    LONGEST = 1 << 20,    /* bytes passed to the kernel at once */
    HELLO = 64,           /* bytes of the first message of each connection */
    FIRST = 50,           /* connections that are open before a run of `idle` or the like */
    QUIET = 200,          /* milliseconds without a byte sent after which `stall` has ended */
    PAUSE = 100,          /* microseconds between connections that send nothing at first */
    SMALL = 64 * 1024,    /* bytes of the kernel's buffers of a connection that stalls */
    FLOOD = 64 * 1024,    /* bytes of one send of the flood: short, so that the first can send */
    WARM = 100,           /* milliseconds of the warm-up, which does not count */
    SAMPLES = 1 << 22,    /* times that are kept */
};
static const uint64_t PACE = 5 * 1000 * 1000; /* nanoseconds */
static const uint64_t SECOND = 1000 * 1000 * 1000;

struct connection {
    int fd;
    bool busy;         /* a message is in flight */
    bool blocked;      /* the kernel's send queue is full */
    uint64_t base;     /* offset of its stream in the pool */
    uint64_t sent, received, goal; /* bytes; the goal is the end of the message */
    uint64_t begun;    /* the time at which the message was due */
};

static enum { ECHO, SHORT, IDLE, SILENT, STALL, FLOODED } how;
static int type = SOCK_STREAM;
static struct sockaddr_in address = {.sin_family = AF_INET};
static size_t size;
static unsigned char pool[PERIOD + LONGEST], buffer[256 * 1024];
static uint32_t *samples;
static size_t sampled;
static struct connection *connections;
static int count, epoll, timer, busy;
static uint64_t done, most, due, stop; /* of a run */

static void die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    exit(1);
}

static uint64_t now(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec * SECOND + time.tv_nsec;
}

static void listen_to(struct connection *c, int operation, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (epoll_ctl(epoll, operation, c->fd, &event)) die("epoll_ctl: %m");
}

static bool endless(const struct connection *c) { return how == FLOODED && c != connections; }

/* Receive once. Return the number of bytes; 0 at the end of the stream, and -1 without bytes. */
static ssize_t receive(struct connection *c, int flags) {
    ssize_t n = recv(c->fd, buffer, endless(c) ? FLOOD : sizeof buffer, flags);
    if (n < 0) {
        if (errno == EAGAIN && flags) return -1;
        die("recv: %m");
    }
    if (c->received + n > c->sent) die("more came back than was sent");
    if (memcmp(buffer, pool + (c->base + c->received) % PERIOD, n))
        die("a wrong byte came back after byte %llu", (unsigned long long)c->received);
    c->received += n;
    return n;
}

/* Send the rest of the message; watch for EPOLLOUT if the kernel does not accept all of it. */
static void send_on(struct connection *c) {
    while (c->sent < c->goal) {
        size_t n = c->goal - c->sent, longest = endless(c) ? FLOOD : LONGEST;
        ssize_t m = send(c->fd, pool + (c->base + c->sent) % PERIOD, n < longest ? n : longest,
                         MSG_NOSIGNAL | MSG_DONTWAIT);
        if (m < 0 && errno != EAGAIN) die("send: %m");
        if (m > 0) c->sent += m;
        if (m < 0 || endless(c)) break;
    }
    bool blocked = c->sent < c->goal;
    if (blocked != c->blocked) {
        listen_to(c, EPOLL_CTL_MOD, blocked ? EPOLLIN | EPOLLOUT : EPOLLIN);
        c->blocked = blocked;
    }
}

static void begin(struct connection *c, uint64_t when) {
    busy += !c->busy;
    c->busy = true;
    c->begun = when;
    c->goal = endless(c) ? UINT64_MAX : c->goal + size;
    send_on(c);
}

/* Connect. On loopback this does not block, unless the server's backlog is full. */
static void open_one(struct connection *c) {
    struct timeval limit = {.tv_sec = LIMIT};
    struct linger reset = {.l_onoff = 1, .l_linger = 0};
    int on = 1, small = SMALL;
    static uint64_t opened;
    *c = (struct connection){.base = 4099 * ++opened};
    c->fd = socket(AF_INET, type, 0);
    if (c->fd < 0) die("socket: %m");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(c->fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    /* Reset permanent connections at the end, so that thousands do not stay in TIME-WAIT. */
    if (how != SHORT) setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    if (how == STALL) {
        setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
        setsockopt(c->fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    }
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address)) die("connect: %m");
    listen_to(c, EPOLL_CTL_ADD, how == STALL ? EPOLLOUT : EPOLLIN);
}

static void greet(struct connection *c) {
    c->goal += HELLO;
    if (send(c->fd, pool + c->base % PERIOD, HELLO, MSG_NOSIGNAL) != HELLO) die("send: %m");
    c->sent = HELLO;
    while (c->received < c->goal)
        if (!receive(c, 0)) die("the server closed a connection");
}

/* Send on all connections that stall, until the server reads from none of them. */
static void stall(void) {
    struct epoll_event events[512];
    int n;
    while ((n = epoll_wait(epoll, events, sizeof events / sizeof *events, QUIET)) > 0) {
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            size_t left = size - c->sent;
            ssize_t m = send(c->fd, pool + (c->base + c->sent) % PERIOD,
                             left < LONGEST ? left : LONGEST, MSG_NOSIGNAL | MSG_DONTWAIT);
            if (m < 0 && errno != EAGAIN) die("send: %m");
            if (m > 0) c->sent += m;
            if (c->sent == size) listen_to(c, EPOLL_CTL_DEL, 0);
        }
    }
    if (n) die("epoll_wait: %m");
}

/* Open connections that stay open, from one number to another. */
static void hold(int from, int to) {
    for (int i = from; i < to; i++) {
        open_one(&connections[i]);
        /* Without a reply to wait for, the connections would overflow the server's backlog. */
        if (how == SILENT || how == STALL) usleep(PAUSE);
        else greet(&connections[i]);
    }
    if (how == STALL) stall();
}

static void begin_short(struct connection *c, uint64_t when) {
    open_one(c);
    begin(c, when);
}

/* Count a finished message or connection. Return the time, or 0 if no other follows in this run. */
static uint64_t finish(struct connection *c) {
    uint64_t end = now(CLOCK_MONOTONIC);
    busy--;
    c->busy = false;
    if (endless(c)) return 0; /* the flood is not measured */
    if (sampled < SAMPLES) samples[sampled++] = end - c->begun;
    done++;
    return end < stop && (!most || done + busy < most) ? end : 0;
}

static void readable(struct connection *c) {
    ssize_t n = receive(c, MSG_DONTWAIT);
    uint64_t end;
    if (n < 0) return;
    if (!n) {
        if (how != SHORT || c->received < c->goal) die("the server closed a connection");
        close(c->fd);
        if ((end = finish(c))) begin_short(c, end);
    } else if (endless(c)) {
        if (c->received == c->goal) finish(c);
    } else if (c->busy && c->received == c->goal) {
        if (how == SHORT) {
            shutdown(c->fd, SHUT_WR);
        } else if (how == ECHO) {
            if ((end = finish(c))) begin(c, end);
        } else if ((end = finish(c)) && due <= end) {
            begin(c, due);
            due += PACE;
        }
    }
}

static void paced(void) {
    uint64_t ticks, time = now(CLOCK_MONOTONIC);
    if (read(timer, &ticks, sizeof ticks) < 0 && errno != EAGAIN) die("timerfd: %m");
    if (!connections->busy && due <= time && time < stop) {
        begin(connections, due);
        due += PACE;
    }
}

/* End the flood: stop sending, and wait for the replies. */
static void stop_flood(void) {
    for (struct connection *c = connections + 1; c < connections + count; c++) {
        c->goal = c->sent;
        send_on(c);
        if (c->received == c->goal) finish(c);
    }
}

static void run(uint64_t nanoseconds) {
    struct epoll_event events[512];
    uint64_t start = now(CLOCK_MONOTONIC);
    bool flooding = how == FLOODED;
    done = 0;
    stop = start + nanoseconds;
    due = start + PACE;
    struct itimerspec each = {.it_interval.tv_nsec = PACE, .it_value.tv_nsec = PACE};
    if (flooding && timerfd_settime(timer, 0, &each, NULL)) die("timerfd: %m");
    for (int i = 0; i < count; i++) {
        if (most && (uint64_t)i >= most) break;
        if (how == SHORT) begin_short(&connections[i], now(CLOCK_MONOTONIC));
        else if (how == ECHO || endless(&connections[i])) begin(&connections[i], now(CLOCK_MONOTONIC));
    }
    while (busy || flooding) {
        int n = epoll_wait(epoll, events, sizeof events / sizeof *events, LIMIT * 1000);
        if (n < 0) die("epoll_wait: %m");
        if (!n) die("nothing came back for %d s", LIMIT);
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if (!c) {
                paced();
                continue;
            }
            if (events[i].events & EPOLLOUT) send_on(c);
            if (events[i].events & ~EPOLLOUT) readable(c);
        }
        if (now(CLOCK_MONOTONIC) >= stop + LIMIT * SECOND) die("a run does not end");
        if (flooding && now(CLOCK_MONOTONIC) >= stop) {
            stop_flood();
            flooding = false;
        }
    }
}

static int compare(const void *left, const void *right) {
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    return (a > b) - (a < b);
}

int main(int argc, char **argv) {
    static const char *names[] = {"echo", "short", "idle", "silent", "stall", "flood"};
    enum { NAMES = sizeof names / sizeof *names };
    char line[16];
    if (argc != 7) die("usage: load PORT HOW CONNECTIONS SIZE MILLISECONDS MOST");
    alarm(WHOLE);
    address.sin_port = htons(atoi(argv[1]));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    bool udp = !strcmp(argv[2], "udp");
    if (udp) type = SOCK_DGRAM;
    while ((int)how < NAMES && strcmp(udp ? "echo" : argv[2], names[how])) how++;
    bool holds = how == IDLE || how == SILENT || how == STALL;
    count = atoi(argv[3]);
    size = atoi(argv[4]);
    uint64_t milliseconds = atoi(argv[5]), of_a_run = atoi(argv[6]);
    if ((int)how == NAMES || count < 1 || !size) die("no such load");
    connections = calloc(count, sizeof *connections);
    samples = malloc(SAMPLES * sizeof *samples);
    epoll = epoll_create1(0);
    if (!connections || !samples || epoll < 0) die("%m");
    srandom(862);
    for (size_t i = 0; i < sizeof pool; i++) pool[i] = i < PERIOD ? random() : pool[i - PERIOD];

    int opened = how == SHORT ? 0 : holds && count > FIRST ? FIRST : count;
    hold(0, opened);
    if (how == FLOODED) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
        timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
        if (timer < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, timer, &event)) die("timerfd: %m");
    }
    if (!holds) {
        most = of_a_run / 10;
        run(WARM * SECOND / 1000);
        sampled = 0;
    }
    most = of_a_run;
    puts("ready");
    fflush(stdout);

    while (fgets(line, sizeof line, stdin)) {
        uint64_t wall = now(CLOCK_MONOTONIC), cpu = now(CLOCK_PROCESS_CPUTIME_ID);
        if (holds) {
            hold(opened, count);
            done = count - opened;
            opened = count;
        } else {
            run(milliseconds * SECOND / 1000);
        }
        wall = now(CLOCK_MONOTONIC) - wall;
        cpu = now(CLOCK_PROCESS_CPUTIME_ID) - cpu;
        qsort(samples, sampled, sizeof *samples, compare);
        printf("%llu %llu %llu %u %u\n", (unsigned long long)done, (unsigned long long)wall,
               (unsigned long long)cpu, sampled ? samples[sampled / 2] : 0,
               sampled ? samples[sampled * 99 / 100] : 0);
        fflush(stdout);
    }
    return 0;
}
