/* A usual echo server for UDP in C: recvfrom(2) and sendto(2), one datagram at a time. */

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

static char buffer[65536];

static void die(const char *what) {
    perror(what);
    exit(1);
}

int main(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int port = socket(AF_INET, SOCK_DGRAM, 0);
    if (port < 0 || bind(port, (struct sockaddr *)&address, length)) die("bind");
    if (getsockname(port, (struct sockaddr *)&address, &length)) die("getsockname");
    printf("listening on udp 127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        length = sizeof address;
        ssize_t received = recvfrom(port, buffer, sizeof buffer, 0, (struct sockaddr *)&address, &length);
        if (received >= 0) sendto(port, buffer, received, 0, (struct sockaddr *)&address, length);
    }
}
