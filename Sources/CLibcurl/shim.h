#ifndef PANDORA_CLIBCURL_H
#define PANDORA_CLIBCURL_H
#include <curl/curl.h>
#endif
