import Testing

@Suite struct CurlTests {}
