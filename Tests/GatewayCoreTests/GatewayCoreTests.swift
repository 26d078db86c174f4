import Testing

@Suite struct GatewayCoreTests {}
