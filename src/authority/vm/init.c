/* The first program of a machine: makes the machine ready, waits for its one order, starts one program,
 * and ends the machine.
 *
 * Rules
 * - It is static and alone in the initramfs, with the kernel's modules beside it. There is no shell.
 * - It loads the modules in the order of `/modules`, mounts the root image read-only, opens the one
 *   channel, says that it waits, and reads one frame. Up to there nothing differs from run to run, so a
 *   machine that was saved at this point can be continued for every run.
 * - The frame is CONFIGURE (see docs/protocol.md): the time, fresh random bytes, the sandbox's
 *   command, the launcher's code and its configuration. The random bytes are mixed in, and the kernel's
 *   generator is seeded anew, before anything is started: two machines from one saved state differ.
 * - Then it starts bubblewrap with that command, the descriptors that the launcher expects, and an empty
 *   environment. The confinement inside is the launcher's work and the same as on a host.
 * - It reaps. When the sandbox has ended it says how, waits until the host has taken everything that was
 *   written, and resets the machine, which the hypervisor takes as its end.
 * - Whatever fails is said on the channel if there is one, and ends the machine. Nothing goes on half done.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <linux/random.h>

#define CHANNEL "/dev/vport0p1"
#define ROOT "/root"
#define TERMINAL_WORD "<terminal>"

enum { CONFIGURE = 16, GUEST = 17 };
enum { WAITING = 0, FAILED = 1, OVER = 2 };
enum { CODE_FD = 3, CONTROL_FD = 4, CHANNEL_FD = 5, MASTER_FD = 6, ABOVE = 64 };
enum { SEED_BYTES = 64, MAX_FRAME = 16 << 20, MAX_WORDS = 16384, MAX_TEXT = 2048, SECONDS = 20 };

static int channel = -1;

static void put32(unsigned char *at, uint32_t value) {
    for (int i = 0; i < 4; i++) at[i] = (unsigned char)(value >> (24 - 8 * i));
}

static uint64_t get(const unsigned char *at, int bytes) {
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++) value = value << 8 | at[i];
    return value;
}

static void end(void) {
    sync();
    reboot(RB_AUTOBOOT);
    for (;;) pause();
}

static void on_alarm(int number) { (void)number; }

/* One frame to the gate. A blocking write to the channel returns when the host has taken it, and with it
 * all that was written before. It also waits for a host that is gone, so that is asked first, and whoever
 * goes in between is waited for no longer than SECONDS. */
static void say(int state, const char *text) {
    unsigned char frame[16 + MAX_TEXT];
    size_t size = strnlen(text, MAX_TEXT), sent = 0, total = 10 + size;
    put32(frame, (uint32_t)(6 + size));
    put32(frame + 4, 0);
    frame[8] = GUEST;
    frame[9] = (unsigned char)state;
    memcpy(frame + 10, text, size);
    struct pollfd there = {channel, POLLOUT, 0};
    if (channel < 0 || poll(&there, 1, 0) < 0 || there.revents & (POLLHUP | POLLERR)) return;
    int blocking = 0;
    ioctl(channel, FIONBIO, &blocking);
    struct sigaction wake = {.sa_handler = on_alarm};
    sigaction(SIGALRM, &wake, NULL);
    alarm(SECONDS);
    while (sent < total) {
        ssize_t n = write(channel, frame + sent, total - sent);
        if (n <= 0) return;
        sent += (size_t)n;
    }
    alarm(0);
}

static void fail(const char *format, ...) {
    char text[MAX_TEXT];
    int error = errno;
    va_list arguments;
    va_start(arguments, format);
    int size = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (error && size > 0 && (size_t)size < sizeof text)
        snprintf(text + size, sizeof text - (size_t)size, ": %s", strerror(error));
    say(FAILED, text);
    end();
}

static void must(int result, const char *what) {
    if (result < 0) fail("%s", what);
}

/* --- what is the same for every run --- */

/* Without a console there are no standard streams, and the first descriptors would be taken for them. */
static void fill_streams(void) {
    int fd;
    do must(fd = open("/dev/null", O_RDWR), "opening /dev/null");
    while (fd < 2);
}

static void setting(const char *path) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, "1", 1) != 1) fail("%s", path);
    close(fd);
}

static void load_modules(void) {
    FILE *list = fopen("/modules", "re");
    char name[256];
    if (!list) fail("the list of modules");
    while (fgets(name, sizeof name, list)) {
        name[strcspn(name, "\n")] = 0;
        int fd = open(name, O_RDONLY | O_CLOEXEC);
        if (fd < 0) fail("%s", name);
        if (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST) fail("%s", name);
        close(fd);
    }
    fclose(list);
}

static void wait_for(const char *path) {
    for (int i = 0; i < 60000; i++) {
        if (!access(path, F_OK)) return;
        usleep(500);
    }
    fail("%s did not appear", path);
}

static void enter_root(void) {
    wait_for("/dev/vda");
    must(mount("/dev/vda", ROOT, "erofs", MS_RDONLY | MS_NODEV | MS_NOSUID, 0), "mounting the root image");
    must(mount("devtmpfs", ROOT "/dev", "devtmpfs", MS_NOSUID | MS_NOEXEC, "mode=755"), "mounting /dev");
    must(mount("proc", ROOT "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0), "mounting /proc");
    must(mkdir(ROOT "/dev/pts", 0755) && errno != EEXIST ? -1 : 0, "making /dev/pts");
    must(mount("devpts", ROOT "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "ptmxmode=0666,mode=620"),
         "mounting /dev/pts");
    must(chdir(ROOT), "entering the root image");
    must(mount(".", "/", 0, MS_MOVE, 0), "moving the root image");
    must(chroot("."), "entering the root image");
    must(chdir("/"), "entering the root image");
}

static void open_channel(void) {
    wait_for(CHANNEL);
    for (int i = 0; i < 60000 && channel < 0; i++) {
        channel = open(CHANNEL, O_RDWR | O_CLOEXEC);
        if (channel < 0) usleep(500);
    }
    if (channel < 0) fail("opening the channel");
}

/* --- the order --- */

static void read_exactly(unsigned char *into, size_t size) {
    while (size) {
        ssize_t n = read(channel, into, size);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) end(); /* the gate is gone: nobody to tell */
        into += n;
        size -= (size_t)n;
    }
}

struct order {
    uint64_t nanoseconds;
    unsigned char *seed, *words, *code, *configuration;
    size_t words_size, code_size, configuration_size;
    uint16_t rows, columns; /* of the terminal; both 0: none */
};

static unsigned char *part(unsigned char **at, size_t *left, size_t size) {
    if (size > *left) fail("an order that is cut short");
    unsigned char *begin = *at;
    *at += size;
    *left -= size;
    return begin;
}

static struct order read_order(void) {
    unsigned char head[9];
    struct order o;
    read_exactly(head, sizeof head);
    size_t left = get(head, 4);
    errno = 0;
    if (left < 5 || left > MAX_FRAME || get(head + 4, 4) || head[8] != CONFIGURE)
        fail("the first frame is no order");
    left -= 5;
    unsigned char *at = malloc(left + 1);
    if (!at) fail("memory for the order");
    read_exactly(at, left);
    at[left] = 0;
    o.nanoseconds = get(part(&at, &left, 8), 8);
    o.rows = (uint16_t)get(part(&at, &left, 2), 2);
    o.columns = (uint16_t)get(part(&at, &left, 2), 2);
    o.seed = part(&at, &left, SEED_BYTES);
    o.words_size = get(part(&at, &left, 4), 4);
    o.words = part(&at, &left, o.words_size);
    o.code_size = get(part(&at, &left, 4), 4);
    o.code = part(&at, &left, o.code_size);
    o.configuration_size = left;
    o.configuration = at;
    if (!o.words_size || o.words[o.words_size - 1]) fail("an order without a command");
    return o;
}

static void renew_randomness(unsigned char *seed) {
    struct {
        int entropy, size;
        unsigned char bytes[SEED_BYTES];
    } pool = {SEED_BYTES * 8, SEED_BYTES, {0}};
    int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
    must(fd, "opening /dev/urandom");
    memcpy(pool.bytes, seed, SEED_BYTES);
    must(ioctl(fd, RNDADDENTROPY, &pool), "mixing in fresh random bytes");
    must(ioctl(fd, RNDRESEEDCRNG, 0), "seeding the random generator anew");
    explicit_bzero(&pool, sizeof pool);
    explicit_bzero(seed, SEED_BYTES);
    close(fd);
}

static void set_clock(uint64_t nanoseconds) {
    struct timespec now = {(time_t)(nanoseconds / 1000000000u), (long)(nanoseconds % 1000000000u)};
    must(clock_settime(CLOCK_REALTIME, &now), "setting the clock");
}

/* --- the sandbox --- */

static int memory_file(const char *name, const unsigned char *data, size_t size) {
    int fd = memfd_create(name, MFD_CLOEXEC);
    must(fd, "a memory file");
    while (size) {
        ssize_t n = write(fd, data, size);
        if (n <= 0) fail("writing a memory file");
        data += n;
        size -= (size_t)n;
    }
    return fd;
}

static char *make_terminal(const struct order *o, int *master) {
    static char name[64];
    struct winsize size = {o->rows, o->columns, 0, 0};
    *master = open("/dev/pts/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
    must(*master, "making a terminal");
    if (unlockpt(*master) || ptsname_r(*master, name, sizeof name)) fail("making a terminal");
    must(ioctl(*master, TIOCSWINSZ, &size), "the terminal's size");
    return name;
}

static char **words_of(const struct order *o, char *terminal) {
    char **words = calloc(MAX_WORDS + 1, sizeof *words);
    size_t count = 0;
    if (!words) fail("memory for the command");
    for (char *at = (char *)o->words; at < (char *)o->words + o->words_size; at += strlen(at) + 1) {
        errno = 0;
        if (count == MAX_WORDS) fail("a command of too many words");
        words[count++] = terminal && !strcmp(at, TERMINAL_WORD) ? terminal : at;
    }
    return words;
}


static void become_sandbox(char **words, int code, int control, int said, int master) {
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    int fds[] = {null, null, said, code, control, channel, master};
    int last = master < 0 ? CHANNEL_FD : MASTER_FD;
    for (int i = 0; i <= last; i++)
        if ((fds[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, ABOVE)) < 0) _exit(126);
    for (int i = 0; i <= last; i++)
        if (dup2(fds[i], i) < 0) _exit(126);
    syscall(SYS_close_range, last + 1, ~0u, 0);
    char *environment[] = {0};
    execve(words[0], words, environment);
    dprintf(2, "%s: %s", words[0], strerror(errno));
    _exit(127);
}

static void give(int fd, const unsigned char *data, size_t size) {
    while (size) {
        ssize_t n = write(fd, data, size);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return; /* the sandbox ended early; what it said is read below */
        data += n;
        size -= (size_t)n;
    }
}

/* Until the sandbox has ended: what the launcher says (S: started, E and a text, X: its end), and every
 * orphan. `why` is empty when the program was started. */
static void watch(pid_t sandbox, int control, int said, char *why) {
    int started = 0;
    size_t size = 0;
    for (;;) {
        char heard[MAX_TEXT];
        ssize_t n = control < 0 ? 0 : read(control, heard, sizeof heard);
        if (n < 0 && errno == EINTR) continue;
        if (n > 0 && heard[0] == 'S') started = 1;
        if (n > 1 && heard[0] == 'E' && !size) {
            size = (size_t)n - 1 < MAX_TEXT - 1 ? (size_t)n - 1 : MAX_TEXT - 1;
            memcpy(why, heard + 1, size);
        }
        if (n > 0) continue;
        if (control >= 0) close(control), control = -1;
        pid_t ended = wait(NULL);
        if (ended == sandbox || (ended < 0 && errno == ECHILD)) break;
    }
    if (started && !size) return;
    if (!size) {
        ssize_t n = pread(said, why, MAX_TEXT - 1, 0);
        size = n > 0 ? (size_t)n : 0;
    }
    if (!size) snprintf(why, MAX_TEXT, "the sandbox ended and said nothing");
}

int main(void) {
    char why[MAX_TEXT] = "";
    int master = -1, both[2];
    umask(022);
    must(mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID | MS_NOEXEC, "mode=755"), "mounting /dev");
    fill_streams();
    load_modules();
    open_channel();
    enter_root();
    setting("/proc/sys/kernel/modules_disabled");
    setting("/proc/sys/kernel/kexec_load_disabled");
    setting("/proc/sys/kernel/dmesg_restrict");
    errno = 0;
    say(WAITING, "");

    struct order o = read_order();
    renew_randomness(o.seed);
    set_clock(o.nanoseconds);
    char *terminal = o.rows ? make_terminal(&o, &master) : NULL;
    char **words = words_of(&o, terminal);
    int code = memory_file("launcher", o.code, o.code_size);
    int said = memory_file("said", NULL, 0);
    must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, both), "the launcher's socket");
    pid_t sandbox = fork();
    must(sandbox, "starting the sandbox");
    if (!sandbox) {
        close(both[0]);
        become_sandbox(words, code, both[1], said, master);
    }
    close(both[1]);
    if (master >= 0) close(master);
    signal(SIGPIPE, SIG_IGN);
    unsigned char size[4];
    put32(size, (uint32_t)o.configuration_size);
    give(both[0], size, sizeof size);
    give(both[0], o.configuration, o.configuration_size);
    watch(sandbox, both[0], said, why);
    say(why[0] ? FAILED : OVER, why);
    end();
}
