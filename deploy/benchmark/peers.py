"""The peers' configurations: each does as much of the work as it can do in memory."""

import json

KEY = "bench-key-0123456789abcdef"
ANSWER = "x" * 100


def nginx(directory, body, modules=""):
    return f"""{modules}
daemon off; master_process off; worker_processes 1; error_log {directory}/nginx-error.log warn; pid {directory}/nginx.pid;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 600;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
  {body}
}}
"""


def upstream(directory, port):
    """The service behind every gateway: 100 bytes, keep-alive."""
    return nginx(directory, f"""
  server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ default_type text/plain; return 200 "{ANSWER}"; }} }}""")


def nginx_bare(directory, port, upstream_port):
    return nginx(directory, f"""
  upstream service {{ server 127.0.0.1:{upstream_port}; keepalive 1024; keepalive_requests 1000000000; }}
  server {{ listen 127.0.0.1:{port} backlog=4096;
    location / {{ proxy_pass http://service; proxy_http_version 1.1; proxy_set_header Connection ""; }} }}""")


def nginx_lua(directory, port, upstream_port):
    """Key lookup, counter and a log line, all in memory but for the buffered file."""
    return nginx(directory, f"""
  lua_shared_dict keys 1m; lua_shared_dict quota 1m;
  init_by_lua_block {{ ngx.shared.keys:set("{KEY}", "environment-1"); ngx.shared.quota:set("environment-1", 1000000000) }}
  log_format hop '$msec $request_id $http_x_api_key $status $request_time $upstream_response_time $body_bytes_sent';
  upstream service {{ server 127.0.0.1:{upstream_port}; keepalive 1024; keepalive_requests 1000000000; }}
  server {{ listen 127.0.0.1:{port} backlog=4096; access_log {directory}/nginx-lua-access.log hop buffer=64k flush=1s;
    location / {{
      access_by_lua_block {{
        local environment = ngx.shared.keys:get(ngx.var.http_x_api_key or "")
        if not environment then return ngx.exit(401) end
        if ngx.shared.quota:incr(environment, -1) < 0 then return ngx.exit(429) end
      }}
      proxy_pass http://service; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header X-API-Key "";
    }} }}""", modules="load_module /usr/lib/nginx/modules/ndk_http_module.so;\n"
                      "load_module /usr/lib/nginx/modules/ngx_http_lua_module.so;")


def envoy(directory, port, upstream_port):
    """api_key_auth, local_ratelimit and a file access log in front of the router."""
    filters = "type.googleapis.com/envoy.extensions.filters.http"
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "ingress",
        "generate_request_id": True,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
            {"match": {"prefix": "/"}, "route": {"cluster": "service"}}]}]},
        "access_log": [{"name": "envoy.access_loggers.file", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": f"{directory}/envoy-access.log"}}],
        "http_filters": [
            {"name": "envoy.filters.http.api_key_auth", "typed_config": {
                "@type": f"{filters}.api_key_auth.v3.ApiKeyAuth",
                "credentials": [{"key": KEY, "client": "environment-1"}],
                "key_sources": [{"header": "X-API-Key"}]}},
            {"name": "envoy.filters.http.local_ratelimit", "typed_config": {
                "@type": f"{filters}.local_ratelimit.v3.LocalRateLimit",
                "stat_prefix": "quota",
                "token_bucket": {"max_tokens": 1000000000, "tokens_per_fill": 1000000000, "fill_interval": "86400s"},
                "filter_enabled": {"default_value": {"numerator": 100, "denominator": "HUNDRED"}},
                "filter_enforced": {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}}},
            {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{filters}.router.v3.Router"}},
        ],
    }

    def address(number):
        return {"socket_address": {"address": "127.0.0.1", "port_value": number}}

    return json.dumps({"static_resources": {
        "listeners": [{"name": "front", "address": address(port), "filter_chains": [{"filters": [
            {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}]}],
        "clusters": [{"name": "service", "type": "STATIC", "connect_timeout": "2s",
                      "circuit_breakers": {"thresholds": [{"max_connections": 4096, "max_pending_requests": 4096,
                                                           "max_requests": 4096}]},
                      "load_assignment": {"cluster_name": "service", "endpoints": [
                          {"lb_endpoints": [{"endpoint": {"address": address(upstream_port)}}]}]}}],
    }})
