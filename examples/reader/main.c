/* Prints the tensors of a .dcb file: name, bytes, and the sum of the bytes of its values. */
#include <stdio.h>
#include <stdlib.h>

#include "reader.h"

int main(int argc, char **argv) {
    FILE *stream = argc == 2 ? fopen(argv[1], "rb") : NULL;
    if (!stream) {
        fprintf(stderr, "usage: reader FILE.dcb\n");
        return 2;
    }
    size_t length = 0, room = 1 << 20;
    uint8_t *bytes = malloc(room);
    while (bytes && (length += fread(bytes + length, 1, room - length, stream)) == room) bytes = realloc(bytes, room *= 2);
    fclose(stream);
    if (!bytes) return 1;

    DcbFile *file = dcb_open(bytes, length, 1 << 30);
    for (size_t number = 0; number < dcb_count(file) && !*dcb_error(file); number++) {
        size_t nbytes;
        const uint8_t *values = dcb_read(file, number, &nbytes);
        unsigned long long sum = 0;
        for (size_t k = 0; values && k < nbytes; k++) sum += values[k];
        if (values) printf("%s %zu %llu\n", dcb_name(file, number), nbytes, sum);
    }
    int failed = *dcb_error(file) != 0;
    if (failed) fprintf(stderr, "error: %s\n", dcb_error(file));
    dcb_close(file);
    free(bytes);
    return failed;
}
