/* malloc in signal handlers: whatever was interrupted, the stack leads to main.
 *
 * The last part single-steps through a call: at each instruction of the PLT, the loader's resolver,
 * libc and the vDSO a handler allocates. */
#define _GNU_SOURCE
#include "truth.h"

#include <signal.h>
#include <sys/auxv.h>
#include <time.h>
#include <ucontext.h>

static SITE void leak_in_handler(size_t size) {
    void *block = malloc(size);
    KEEP(block);
    truth_site("leak_in_handler", (int64_t)size, 1);
}

#define LEAK_AT(place)                                                                             \
    static SITE void leak_at_##place(size_t size) {                                                \
        void *block = malloc(size);                                                                \
        KEEP(block);                                                                               \
        HELD(size);                                                                                \
    }

LEAK_AT(vdso)
LEAK_AT(plt)
LEAK_AT(another_place)

static void on_raise(int signal) {
    leak_in_handler(1111);
    KEEP(&signal);
}

static SITE void interrupted(void) {
    raise(SIGUSR1);
    KEEP(&truth_lock);
}

/* The interrupted pc is the first byte of the function: it is no return address. */
void faults_at_once(void);
__asm__(".text\n"
        "  ret\n"
        ".type faults_at_once, @function\n"
        "faults_at_once:\n"
        "  .cfi_startproc\n"
        "  ud2\n"
        "  ret\n"
        "  .cfi_endproc\n"
        ".size faults_at_once, . - faults_at_once\n");

static void on_illegal(int signal, siginfo_t *info, void *context) {
    leak_in_handler(2221);
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] += 2;
    KEEP(&signal);
    KEEP(info);
}

static SITE void calls_what_faults(void) {
    faults_at_once();
    KEEP(&truth_lock);
}

/* On a stack of its own. */
static void on_other_stack(int signal) {
    leak_in_handler(3331);
    KEEP(&signal);
}

static SITE void interrupted_to_other_stack(void) {
    raise(SIGUSR2);
    KEEP(&truth_lock);
}

int main(void);
void _init(void);
void _start(void);
static void stepped(void);

static int in_plt(uintptr_t pc) {
    /* .plt lies between .init and .text. */
    uintptr_t text = (uintptr_t)main;
    if ((uintptr_t)_start < text)
        text = (uintptr_t)_start;
    if ((uintptr_t)stepped < text)
        text = (uintptr_t)stepped;
    return pc >= (uintptr_t)_init && pc < text;
}

static uintptr_t vdso;

static void on_step(int signal, siginfo_t *info, void *context) {
    uintptr_t pc = (uintptr_t)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    if (pc - vdso < 0x4000)
        leak_at_vdso(17);
    else if (in_plt(pc))
        leak_at_plt(19);
    else
        leak_at_another_place(23);
    KEEP(&signal);
    KEEP(info);
}

#define TRAP(change)                                                                               \
    __asm__ volatile("pushfq\n\t.cfi_adjust_cfa_offset 8\n\t" change                               \
                     "\n\tpopfq\n\t.cfi_adjust_cfa_offset -8"                                      \
                     : : : "memory", "cc")

static int ascending(const void *left, const void *right) {
    return *(const int *)left - *(const int *)right;
}

static SITE void stepped(void) {
    struct timespec now;
    int numbers[7] = {3, 1, 4, 1, 5, 9, 2};
    TRAP("orq $0x100, (%%rsp)");
    clock_gettime(CLOCK_MONOTONIC, &now);
    qsort(numbers, 7, sizeof *numbers, ascending);
    TRAP("andq $~0x100, (%%rsp)");
    KEEP(numbers);
    KEEP(&now);
}

static void handle(int signal, void (*handler)(int, siginfo_t *, void *), int flags) {
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | flags};
    if (sigaction(signal, &action, NULL))
        truth_fail("sigaction failed");
}

int main(void) {
    static char other_stack[64 << 10];
    stack_t stack = {.ss_sp = other_stack, .ss_size = sizeof other_stack};
    vdso = getauxval(AT_SYSINFO_EHDR);
    if (!vdso || sigaltstack(&stack, NULL))
        truth_fail("no vDSO, or no other stack");
    handle(SIGUSR1, (void (*)(int, siginfo_t *, void *))on_raise, 0);
    handle(SIGUSR2, (void (*)(int, siginfo_t *, void *))on_other_stack, SA_ONSTACK);
    handle(SIGILL, on_illegal, 0);
    handle(SIGTRAP, on_step, 0);
    /* What the handler calls is bound. */
    free(malloc(1));
    truth_site("leak_at_vdso", 0, 0);
    truth_ready();
    interrupted();
    calls_what_faults();
    interrupted_to_other_stack();
    stepped();
    truth_end();
}
