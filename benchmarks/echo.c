/* A usual echo server in C: one thread, level-triggered epoll(7), one buffer for all
   connections. Bytes that the kernel does not accept are queued, and the server does not read
   from their connection until they are sent: a peer that does not read cannot make it buffer
   more. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

struct connection {
    int fd;
    char *queue; /* unsent bytes, from `begin` to `end`; or NULL */
    size_t begin, end;
};

/* Whole segments of loopback, as in echod: with 256 KiB each send ends in a tiny segment, and
   1 MB messages take a third longer. */
static char buffer[196449];
static int epoll;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void wait_for(struct connection *c, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &event)) die("epoll_ctl");
}

static void end(struct connection *c) {
    close(c->fd); /* this also removes it from the epoll set */
    free(c->queue);
    free(c);
}

static void welcome(int listener) {
    int on = 1, fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) return; /* the client has closed, or there is no free descriptor */
    struct connection *c = calloc(1, sizeof *c);
    if (!c) die("calloc");
    c->fd = fd;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
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

int main(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    struct epoll_event events[512] = {{.events = EPOLLIN, .data.ptr = NULL}};
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, length)) die("bind");
    if (listen(listener, SOMAXCONN)) die("listen");
    if (getsockname(listener, (struct sockaddr *)&address, &length)) die("getsockname");
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, listener, events)) die("epoll");
    printf("listening on tcp 127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        int n = epoll_wait(epoll, events, sizeof events / sizeof *events, -1);
        if (n < 0 && errno != EINTR) die("epoll_wait");
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if (!c) welcome(listener);
            else if (c->queue) flush(c);
            else echo(c);
        }
    }
}
