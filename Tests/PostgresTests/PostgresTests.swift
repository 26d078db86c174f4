import Testing

@Suite struct PostgresTests {}
