/* Tensors of .dcb files, for C: link with libdeepcabac_reader.a. */
#ifndef DEEPCABAC_READER_H
#define DEEPCABAC_READER_H

#include <stddef.h>
#include <stdint.h>

typedef struct DcbFile DcbFile;

/* Opens a file that is in memory, and stays there until dcb_close. Never null: dcb_error says what is wrong. Nothing larger
   than max_bytes is decoded. */
DcbFile *dcb_open(const uint8_t *bytes, size_t length, uint64_t max_bytes);

/* What was wrong with the last call on this file; "" if nothing was. */
const char *dcb_error(const DcbFile *file);

/* The number of tensors, and the name of one. */
size_t dcb_count(const DcbFile *file);
const char *dcb_name(const DcbFile *file, size_t number);

/* Decodes a tensor: its values, until the next call, and their bytes; null if they cannot be had. */
const uint8_t *dcb_read(DcbFile *file, size_t number, size_t *nbytes);

void dcb_close(DcbFile *file);

#endif
