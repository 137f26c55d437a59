/* What a first program that was overcome does in place of starting the sandbox: it starts the same
 * interpreter, as root, with every capability and the channel, and hands it BE_ROOT for the launcher's
 * code. It becomes part of a copy of `vm/init.c`, before its function that becomes the sandbox. */
static char **overcome(char **words) {
    while (*words && strcmp(*words, "--")) words++;
    if (!*words) _exit(126);
    char **interpreter = ++words;
    while (words[1]) words++;
    *words = (char *)BE_ROOT;
    return interpreter;
}

