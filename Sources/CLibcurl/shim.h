#ifndef PANDORA_CLIBCURL_H
#define PANDORA_CLIBCURL_H

#ifndef __clang__ // lets gcc, whose checks of curl's variadic options are the stricter ones, compile this header too
#define _Nonnull
#define _Nullable
#endif
#include <curl/curl.h>

// One typed function per variadic option: curl's own type checks need the option to be a constant, and Swift cannot call
// variadic functions at all. CURLcode and CURLMcode results are returned as they are.
#ifndef PCURL_INLINE
#define PCURL_INLINE static inline __attribute__((always_inline))
#endif

#define PCURL_EASY(name, option, type)                                                                                        \
    PCURL_INLINE CURLcode pcurl_##name(CURL *_Nonnull easy, type value) { return curl_easy_setopt(easy, option, value); }
#define PCURL_MULTI(name, option, type)                                                                                       \
    PCURL_INLINE CURLMcode pcurl_multi_##name(CURLM *_Nonnull multi, type value) {                                            \
        return curl_multi_setopt(multi, option, value);                                                                       \
    }

typedef size_t (*_Nonnull pcurl_bytes_callback)(char *_Nonnull bytes, size_t size, size_t count, void *_Nonnull context);
typedef int (*_Nonnull pcurl_prereq_callback)(
    void *_Nonnull context, char *_Nullable remote_ip, char *_Nullable local_ip, int remote_port, int local_port);
typedef curl_socket_t (*_Nonnull pcurl_open_callback)(
    void *_Nonnull context, curlsocktype purpose, struct curl_sockaddr *_Nonnull address);
typedef int (*_Nonnull pcurl_close_callback)(void *_Nonnull context, curl_socket_t descriptor);
typedef int (*_Nonnull pcurl_socket_callback)(
    CURL *_Nonnull easy, curl_socket_t descriptor, int what, void *_Nonnull context, void *_Nullable assigned);
typedef int (*_Nonnull pcurl_timer_callback)(CURLM *_Nonnull multi, long milliseconds, void *_Nonnull context);

PCURL_EASY(set_url_handle, CURLOPT_CURLU, CURLU *_Nonnull)
PCURL_EASY(set_connect_to, CURLOPT_CONNECT_TO, struct curl_slist *_Nullable)
PCURL_EASY(set_request_target, CURLOPT_REQUEST_TARGET, const char *_Nullable)
PCURL_EASY(set_path_as_is, CURLOPT_PATH_AS_IS, long)
PCURL_EASY(set_custom_request, CURLOPT_CUSTOMREQUEST, const char *_Nullable)
PCURL_EASY(set_http_get, CURLOPT_HTTPGET, long)
PCURL_EASY(set_no_body, CURLOPT_NOBODY, long)
PCURL_EASY(set_upload, CURLOPT_UPLOAD, long)
PCURL_EASY(set_upload_length, CURLOPT_INFILESIZE_LARGE, curl_off_t)
PCURL_EASY(set_headers, CURLOPT_HTTPHEADER, struct curl_slist *_Nullable)
PCURL_EASY(set_connect_only, CURLOPT_CONNECT_ONLY, long)
PCURL_EASY(set_http_version, CURLOPT_HTTP_VERSION, long)
PCURL_EASY(set_allow_http09, CURLOPT_HTTP09_ALLOWED, long)
PCURL_EASY(set_no_signal, CURLOPT_NOSIGNAL, long)
PCURL_EASY(set_no_progress, CURLOPT_NOPROGRESS, long)
PCURL_EASY(set_quick_exit, CURLOPT_QUICK_EXIT, long)
PCURL_EASY(set_tcp_no_delay, CURLOPT_TCP_NODELAY, long)
PCURL_EASY(set_follow_location, CURLOPT_FOLLOWLOCATION, long)
PCURL_EASY(set_http_content_decoding, CURLOPT_HTTP_CONTENT_DECODING, long)
PCURL_EASY(set_buffer_size, CURLOPT_BUFFERSIZE, long)
PCURL_EASY(set_upload_buffer_size, CURLOPT_UPLOAD_BUFFERSIZE, long)
PCURL_EASY(set_connect_timeout_ms, CURLOPT_CONNECTTIMEOUT_MS, long)
PCURL_EASY(set_protocols, CURLOPT_PROTOCOLS_STR, const char *_Nonnull)
PCURL_EASY(set_proxy, CURLOPT_PROXY, const char *_Nonnull)
PCURL_EASY(set_ca_file, CURLOPT_CAINFO, const char *_Nullable)
PCURL_EASY(set_ca_path, CURLOPT_CAPATH, const char *_Nullable)
PCURL_EASY(set_verify_peer, CURLOPT_SSL_VERIFYPEER, long)
PCURL_EASY(set_verify_host, CURLOPT_SSL_VERIFYHOST, long)
PCURL_EASY(set_error_buffer, CURLOPT_ERRORBUFFER, char *_Nullable)
PCURL_EASY(set_private, CURLOPT_PRIVATE, void *_Nullable)
PCURL_EASY(set_write_function, CURLOPT_WRITEFUNCTION, pcurl_bytes_callback)
PCURL_EASY(set_write_context, CURLOPT_WRITEDATA, void *_Nonnull)
PCURL_EASY(set_header_function, CURLOPT_HEADERFUNCTION, pcurl_bytes_callback)
PCURL_EASY(set_header_context, CURLOPT_HEADERDATA, void *_Nonnull)
PCURL_EASY(set_read_function, CURLOPT_READFUNCTION, pcurl_bytes_callback)
PCURL_EASY(set_read_context, CURLOPT_READDATA, void *_Nonnull)
PCURL_EASY(set_prereq_function, CURLOPT_PREREQFUNCTION, pcurl_prereq_callback)
PCURL_EASY(set_prereq_context, CURLOPT_PREREQDATA, void *_Nonnull)
PCURL_EASY(set_open_function, CURLOPT_OPENSOCKETFUNCTION, pcurl_open_callback)
PCURL_EASY(set_open_context, CURLOPT_OPENSOCKETDATA, void *_Nonnull)
PCURL_EASY(set_close_function, CURLOPT_CLOSESOCKETFUNCTION, pcurl_close_callback)
PCURL_EASY(set_close_context, CURLOPT_CLOSESOCKETDATA, void *_Nonnull)

PCURL_MULTI(set_socket_function, CURLMOPT_SOCKETFUNCTION, pcurl_socket_callback)
PCURL_MULTI(set_socket_context, CURLMOPT_SOCKETDATA, void *_Nonnull)
PCURL_MULTI(set_timer_function, CURLMOPT_TIMERFUNCTION, pcurl_timer_callback)
PCURL_MULTI(set_timer_context, CURLMOPT_TIMERDATA, void *_Nonnull)
PCURL_MULTI(set_max_idle_connections, CURLMOPT_MAXCONNECTS, long)
PCURL_MULTI(set_pipelining, CURLMOPT_PIPELINING, long)

PCURL_INLINE CURLcode pcurl_get_private(CURL *_Nonnull easy, void *_Nullable *_Nonnull value) {
    return curl_easy_getinfo(easy, CURLINFO_PRIVATE, value);
}
PCURL_INLINE CURLcode pcurl_get_active_socket(CURL *_Nonnull easy, curl_socket_t *_Nonnull descriptor) {
    return curl_easy_getinfo(easy, CURLINFO_ACTIVESOCKET, descriptor);
}

#endif
