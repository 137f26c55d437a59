/* In the hypervisor's place: does one thing that a hypervisor may do. BEHAVIOUR is given when it is
 * compiled; it is static, because its jail has no interpreter and few libraries.
 *
 * `boots` becomes the real QEMU (which the test has put at REAL), with emulation where KVM was asked for:
 * the guest that boots is a real one. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define REAL "/usr/lib/os-release"
#ifndef VERSION
#define VERSION "QEMU emulator version 9.9.1 (a stand-in)"
#endif
enum { CHANNEL = 10 };

static int is(const char *name) { return !strcmp(BEHAVIOUR, name); }

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "--version")) {
        if (is("hangs when asked")) pause();
        puts(VERSION);
        return 0;
    }
    if (is("boots")) {
        for (int i = 1; i < argc; i++) {
            if (!strcmp(argv[i], "kvm")) argv[i] = "tcg,tb-size=128";
            else if (!strcmp(argv[i], "host") && !strcmp(argv[i - 1], "-cpu")) argv[i] = "max";
        }
        argv[0] = REAL;
        execv(REAL, argv);
        perror(REAL);
        return 1;
    }
    if (is("hangs")) pause();
    if (is("trickles"))
        for (;;) {
            if (write(CHANNEL, "\0", 1) != 1) return 1;
            usleep(200000);
        }
    if (is("dies")) {
        fputs("qemu-system-x86_64: error: failed to set MSR 0x10a to 0x2000000000\n", stderr);
        abort();
    }
    if (is("garbage")) {
        fputs("\033]0;title\007\033[31mnot a \xff message\n", stderr);
        write(CHANNEL, "\0\0\0\6\0\0\0\0\021\0 and more that no guest says", 40);
        return 0;
    }
    return 3;
}
