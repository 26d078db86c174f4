#ifndef PANDORA_CMIGRATIONS_H
#define PANDORA_CMIGRATIONS_H

#include <stddef.h>

// The files of migrations/, byte for byte, in the order of their numbers.  An index beyond
// cmigrations_count() is a programming error.

size_t cmigrations_count(void);

// File name without a directory, for instance "0001_create_schema.sql".
const char *_Nonnull cmigrations_name(size_t index);

const unsigned char *_Nonnull cmigrations_bytes(size_t index);

size_t cmigrations_length(size_t index);

#endif
