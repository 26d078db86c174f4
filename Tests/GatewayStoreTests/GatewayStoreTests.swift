import Testing

@Suite struct GatewayStoreTests {}
