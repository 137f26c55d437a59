/* Stands where QEMU stands, as if it had been taken over, and says what it reaches: "NAME ERRNO" each. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define TRY(name, ...)                                           \
    do {                                                         \
        errno = 0;                                               \
        long got = (long)(__VA_ARGS__);                          \
        printf("%s %s\n", name, got < 0 ? strerrorname_np(errno) : "ok"); \
    } while (0)

static char room[256];

static long key(const char *name) {
    long found = syscall(SYS_request_key, "user", name, 0, 0);
    return found < 0 ? found : syscall(SYS_keyctl, 11, found, room, sizeof room); /* KEYCTL_READ */
}

static long beside(void) { /* a folder of the host, wherever it was left open */
    for (int fd = 3; fd < 300; fd++) {
        int file = openat(fd, "beside", O_RDONLY);
        if (file >= 0) return file;
    }
    errno = ENOENT;
    return -1;
}

int main(int count, char **words) {
    struct { unsigned type, size; char rest[120]; } event = {1, 120}; /* a software event of its own */
    dup2(2, 1);
    setvbuf(stdout, 0, _IOLBF, 0);
    TRY("folder", beside());
    TRY("key", key("authority-intruder"));
    TRY("key names", open("/proc/keys", O_RDONLY));
    TRY("kernel names", open("/proc/kallsyms", O_RDONLY));
    TRY("vsock", socket(AF_VSOCK, SOCK_STREAM, 0));
    TRY("netlink", socket(AF_NETLINK, SOCK_RAW, 0));
    TRY("unix", socket(AF_UNIX, SOCK_STREAM, 0));
    TRY("inet", socket(AF_INET, SOCK_STREAM, 0));
    TRY("io_uring", syscall(SYS_io_uring_setup, 4, calloc(1, 200)));
    TRY("userfaultfd", syscall(SYS_userfaultfd, 1));
    TRY("perf", syscall(SYS_perf_event_open, &event, 0, -1, -1, 0));
    TRY("fanotify", syscall(SYS_fanotify_init, 0x200, 0));
    TRY("inotify", syscall(SYS_inotify_init1, 0));
    TRY("shared memory", syscall(SYS_shmget, 77, 4096, 0600 | 01000));
    TRY("memory file", syscall(SYS_memfd_create, "m", 0));
    TRY("vm_readv", syscall(SYS_process_vm_readv, getpid(), 0, 0, 0, 0, 0));
    struct rlimit core;
    getrlimit(RLIMIT_CORE, &core);
    printf("core %s\n", core.rlim_max ? "ok" : "ENONE");
    printf("end ok\n");
    return 0;
}
