/* An echo server in C with splice(2): the one of echo.c, except that bulk does not pass through
   its memory. A connection whose last receive was short is received into one buffer for all
   connections, which is cheaper. After a long one, bytes move from the socket to a pipe and
   from the pipe to the socket. All connections share one pipe, because it is empty again after
   each echo: a connection whose peer does not read keeps it until its bytes are sent, and the
   next connection gets another. */

#include "echo.h"
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>

enum {
    BULK = 64 * 1024, /* bytes; after a receive of this length, the next one is spliced */
    PIPE = 1 << 20,   /* bytes; the most that a user without privileges gets (pipe(7)) */
};

struct pipe { /* pipe(2) */
    int ends[2]; /* to read from, and to write to */
};

struct connection {
    int fd;
    bool bulk;
    char *queue; /* unsent bytes in memory, from `begin` to `end`; or NULL */
    size_t begin, end;
    struct pipe pipe; /* unsent bytes in the kernel */
    size_t piped;     /* their number; 0: the connection has no pipe */
};

static char buffer[196449];
static struct pipe spare; /* empty */

static void wait_for(struct connection *c, uint32_t events) {
    watch(EPOLL_CTL_MOD, c->fd, c, events);
}

static struct pipe new_pipe(void) {
    struct pipe made;
    if (pipe2(made.ends, O_NONBLOCK | O_CLOEXEC)) die("pipe");
    fcntl(made.ends[1], F_SETPIPE_SZ, PIPE); /* without it, the pipe is only smaller */
    return made;
}

static void close_pipe(struct pipe *one) {
    close(one->ends[0]);
    close(one->ends[1]);
}

static void end(struct connection *c) {
    close(c->fd); /* this also removes it from the epoll set */
    if (c->piped) close_pipe(&c->pipe);
    free(c->queue);
    free(c);
}

static struct connection *new_connection(int fd) {
    struct connection *c = calloc(1, sizeof *c);
    if (!c) die("calloc");
    c->fd = fd;
    return c;
}

/* Return the bytes that the kernel has accepted: 0 if it is full, -1 after an error. */
static ssize_t accepted(ssize_t sent) { return sent < 0 && errno == EAGAIN ? 0 : sent; }

static void echo_buffer(struct connection *c, ssize_t received) {
    ssize_t sent = accepted(send(c->fd, buffer, received, MSG_NOSIGNAL));
    if (sent < 0) end(c);
    if (sent < 0 || sent == received) return;
    c->begin = 0;
    c->end = received - sent;
    c->queue = malloc(c->end);
    if (!c->queue) die("malloc");
    memcpy(c->queue, buffer + sent, c->end);
    wait_for(c, EPOLLOUT);
}

static void echo_pipe(struct connection *c, ssize_t received) {
    ssize_t sent = accepted(splice(spare.ends[0], NULL, c->fd, NULL, received, SPLICE_F_NONBLOCK));
    if (sent == received) return;
    c->pipe = spare; /* it is not empty */
    c->piped = received;
    spare = new_pipe();
    if (sent < 0) {
        end(c);
        return;
    }
    c->piped -= sent;
    wait_for(c, EPOLLOUT);
}

static void echo(struct connection *c) {
    bool bulk = c->bulk;
    ssize_t received = bulk ? splice(c->fd, NULL, spare.ends[1], NULL, PIPE, SPLICE_F_NONBLOCK)
                            : recv(c->fd, buffer, sizeof buffer, 0);
    if (received <= 0) {
        if (!received || errno != EAGAIN) end(c);
        return;
    }
    c->bulk = received >= BULK;
    if (bulk) echo_pipe(c, received);
    else echo_buffer(c, received);
}

static void flush(struct connection *c) {
    ssize_t sent = accepted(
        c->piped ? splice(c->pipe.ends[0], NULL, c->fd, NULL, c->piped, SPLICE_F_NONBLOCK)
                 : send(c->fd, c->queue + c->begin, c->end - c->begin, MSG_NOSIGNAL));
    if (sent < 0) {
        end(c);
    } else if (c->piped) {
        c->piped -= sent;
        if (c->piped) return;
        close_pipe(&c->pipe);
        wait_for(c, EPOLLIN);
    } else {
        c->begin += sent;
        if (c->begin < c->end) return;
        free(c->queue);
        c->queue = NULL;
        wait_for(c, EPOLLIN);
    }
}

static void handle(struct connection *c) {
    if (c->queue || c->piped) flush(c);
    else echo(c);
}

int main(void) {
    signal(SIGPIPE, SIG_IGN); /* splice(2) has no MSG_NOSIGNAL */
    spare = new_pipe();
    serve();
}
