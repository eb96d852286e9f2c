/* A usual echo server in C: one thread, level-triggered epoll(7), one buffer for all
   connections. Bytes that the kernel does not accept are queued, and the server does not read
   from their connection until they are sent: a peer that does not read cannot make it buffer
   more. */

#include "echo.h"

struct connection {
    int fd;
    char *queue; /* unsent bytes, from `begin` to `end`; or NULL */
    size_t begin, end;
};

/* Whole segments of loopback, as in echod: with 256 KiB each send ends in a tiny segment, and
   1 MB messages take a third longer. */
static char buffer[196449];

static void wait_for(struct connection *c, uint32_t events) {
    watch(EPOLL_CTL_MOD, c->fd, c, events);
}

static void end(struct connection *c) {
    close(c->fd); /* this also removes it from the epoll set */
    free(c->queue);
    free(c);
}

static struct connection *new_connection(int fd) {
    struct connection *c = calloc(1, sizeof *c);
    if (!c) die("calloc");
    c->fd = fd;
    return c;
}

static void echo(struct connection *c) {
    ssize_t received = recv(c->fd, buffer, sizeof buffer, 0);
    if (received <= 0) {
        if (!received || errno != EAGAIN) end(c);
        return;
    }
    ssize_t sent = send(c->fd, buffer, received, MSG_NOSIGNAL);
    if (sent == received) return;
    if (sent < 0) {
        if (errno != EAGAIN) {
            end(c);
            return;
        }
        sent = 0;
    }
    c->begin = 0;
    c->end = received - sent;
    c->queue = malloc(c->end);
    if (!c->queue) die("malloc");
    memcpy(c->queue, buffer + sent, c->end);
    wait_for(c, EPOLLOUT);
}

static void flush(struct connection *c) {
    ssize_t sent = send(c->fd, c->queue + c->begin, c->end - c->begin, MSG_NOSIGNAL);
    if (sent < 0) {
        if (errno != EAGAIN) end(c);
        return;
    }
    c->begin += sent;
    if (c->begin == c->end) {
        free(c->queue);
        c->queue = NULL;
        wait_for(c, EPOLLIN);
    }
}

static void handle(struct connection *c) {
    if (c->queue) flush(c);
    else echo(c);
}

int main(void) {
    serve();
}
