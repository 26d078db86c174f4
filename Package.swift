// swift-tools-version: 6.2
import PackageDescription

let package = Package(
    name: "pandora",
    products: [.executable(name: "pandora", targets: ["pandora"])],
    dependencies: [
        .package(url: "https://github.com/apple/swift-nio", from: "2.101.2"),
        .package(url: "https://github.com/apple/swift-nio-ssl", from: "2.37.6"),
        .package(url: "https://github.com/apple/swift-nio-http2", from: "1.46.0"),
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
        .package(url: "https://github.com/apple/swift-crypto", from: "4.5.2"),
        .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
        .package(url: "https://github.com/jpsim/Yams", from: "6.2.2"),
    ],
    targets: [
        // C: system modules and what they and the kernel need in C.
        .systemLibrary(
            name: "CLibpq", pkgConfig: "libpq", providers: [.apt(["libpq-dev"])]),
        .systemLibrary(
            name: "CLibcurl", pkgConfig: "libcurl", providers: [.apt(["libcurl4-openssl-dev"])]),
        .target(name: "CLinux"),
        .target(name: "CMigrations"),

        // Layers that know nothing of the domain.
        .target(
            name: "Reactor",
            dependencies: ["CLinux", nio("NIOCore"), nio("NIOConcurrencyHelpers")]),
        .target(name: "Postgres", dependencies: ["CLibpq", "CLinux", "Reactor", nio("NIOCore")]),
        .target(name: "Curl", dependencies: ["CLibcurl", "CLinux", "Reactor", nio("NIOCore")]),

        // The domain: values and state machines, no I/O, no clock but a parameter.
        .target(
            name: "GatewayCore",
            dependencies: [
                .product(name: "Crypto", package: "swift-crypto"),
                .product(name: "Yams", package: "Yams"),
            ]),
        .target(
            name: "GatewayStore",
            dependencies: [
                "CMigrations", "GatewayCore", "Postgres", "Reactor", nio("NIOCore"),
                .product(name: "Crypto", package: "swift-crypto"),
            ]),

        // The shell that puts them together, and the command.
        .target(
            name: "Gateway",
            dependencies: [
                "CLinux", "Curl", "GatewayCore", "GatewayStore", "Postgres", "Reactor",
                nio("NIOCore"), nio("NIOHTTP1"),
                .product(name: "Logging", package: "swift-log"),
            ]),
        .target(name: "PrivateCluster", dependencies: ["CLinux"]),
        .executableTarget(
            name: "pandora",
            dependencies: [
                "Curl", "Gateway", "GatewayCore", "GatewayStore", "Postgres", "PrivateCluster", "Reactor",
                nio("NIOCore"), nio("NIOHTTP1"),
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
                .product(name: "Logging", package: "swift-log"),
            ]),

        // Tests: one target per target, and the kit they share.
        .target(
            name: "TestKit", dependencies: ["CLinux", "Postgres", "PrivateCluster", "Reactor", nio("NIOCore")], path: "Tests/TestKit"),
        .target(name: "QuotaModel", dependencies: ["GatewayCore"], path: "Tests/QuotaModel"),
        .testTarget(
            name: "ReactorTests",
            dependencies: [
                "CLinux", "Reactor", "TestKit", nio("NIOCore"), nio("NIOHTTP1"),
                .product(name: "NIOSSL", package: "swift-nio-ssl"),
                .product(name: "NIOHTTP2", package: "swift-nio-http2"),
            ]),
        .testTarget(
            name: "PostgresTests",
            dependencies: ["Postgres", "PrivateCluster", "Reactor", "TestKit", nio("NIOCore")]),
        .testTarget(
            name: "CurlTests",
            dependencies: [
                "CLinux", "Curl", "Reactor", "TestKit", nio("NIOCore"), nio("NIOTLS"),
                .product(name: "NIOSSL", package: "swift-nio-ssl"),
            ]),
        .testTarget(name: "GatewayCoreTests", dependencies: ["GatewayCore", "QuotaModel", "TestKit"]),
        .testTarget(
            name: "GatewayStoreTests",
            dependencies: [
                "GatewayCore", "GatewayStore", "Postgres", "PrivateCluster", "Reactor", "TestKit",
                nio("NIOCore"),
            ]),
        .testTarget(
            name: "GatewayTests",
            dependencies: [
                "CLinux", "Curl", "Gateway", "GatewayCore", "GatewayStore", "Postgres", "PrivateCluster",
                "QuotaModel", "Reactor", "TestKit", nio("NIOCore"), nio("NIOEmbedded"), nio("NIOHTTP1"),
            ]),
    ]
)

func nio(_ product: String) -> Target.Dependency {
    .product(name: product, package: "swift-nio")
}

// The same rules for every Swift target: Swift 6 language mode, no silent existential, imports that say
// what they lend out, and no warning left standing.
let cTargets: Set<String> = ["CLibpq", "CLibcurl", "CLinux", "CMigrations"]
for target in package.targets where !cTargets.contains(target.name) {
    target.swiftSettings = [
        .swiftLanguageMode(.v6),
        .enableUpcomingFeature("ExistentialAny"),
        .enableUpcomingFeature("MemberImportVisibility"),
        .enableUpcomingFeature("InternalImportsByDefault"),
        .treatAllWarnings(as: .error),
    ]
}
