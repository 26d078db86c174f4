#ifndef PANDORA_CLIBPQ_H
#define PANDORA_CLIBPQ_H
#include <libpq-fe.h>
#endif
