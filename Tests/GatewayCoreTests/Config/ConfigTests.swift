import Foundation
import GatewayCore
import Testing

/// A file that is right, with room for what a test wants to add.
private func file(
    _ more: String = "", routes: String = "  - {name: all, service: s, upstream: u}", upstreams: String = "  u: {targets: [h:1]}"
) -> String {
    "listen: 127.0.0.1:0\nupstreams:\n\(upstreams)\nroutes:\n\(routes)\n\(more)"
}

private func faults(_ text: String, variables: [String: String] = [:]) -> [String] {
    let surroundings = ConfigurationSurroundings(variable: { variables[$0] }, contents: { $0 == "/secret" ? "postgres://h/d\n" : nil })
    do throws(ConfigurationErrors) {
        _ = try Configuration.parse(text, file: "f", surroundings: surroundings)
        return []
    } catch { return error.description.split(separator: "\n").map(String.init) }
}

private func parsed(_ text: String, variables: [String: String] = [:]) throws -> Configuration {
    try Configuration.parse(
        text, file: "f",
        surroundings: ConfigurationSurroundings(variable: { variables[$0] }, contents: { $0 == "/secret" ? "postgres://h/d\n" : nil }))
}

@Suite struct ConfigTests {
    @Test(arguments: ["pandora.yaml", "minimal.yaml"]) func theExamplesAreRight(name: String) throws {
        let root = URL(filePath: #filePath).deletingLastPathComponent().appending(path: "../../../config/\(name)").standardized
        let text = try String(contentsOf: root, encoding: .utf8)
        let configuration = try parsed(text, variables: ["PANDORA_DATABASE_URL": "postgres://u:p@h/d"])
        #expect(configuration.boot.database?.reveal() == "postgres://u:p@h/d")
        #expect(!configuration.traffic.routes.routes.isEmpty)
    }

    /// The annotated example says that it shows the defaults.
    @Test func theAnnotatedExampleShowsTheDefaults() throws {
        let root = URL(filePath: #filePath).deletingLastPathComponent().appending(path: "../../../config/pandora.yaml").standardized
        let boot = try parsed(String(contentsOf: root, encoding: .utf8), variables: ["PANDORA_DATABASE_URL": "postgres://h/d"]).boot
        #expect(boot.limits == LimitSettings())
        #expect(boot.keys == KeySettings())
        #expect(boot.quota == QuotaSettings())
        #expect(boot.log == LogSettings())
        #expect(boot.drain == Limits.drain)
        #expect(boot.spool == SpoolSettings())
    }

    @Test func theLogIsKeptForEverOrForDays() throws {
        #expect(try parsed(file("")).boot.log.keep == nil)
        #expect(try parsed(file("log: {keep: 90d}")).boot.log.keep == .seconds(90 * 86_400))
        #expect(faults(file("log: {keep: 23h}")).map { $0.contains("log.keep must be between 1d and 36500d, found '23h'") } == [true])
    }

    @Test func secretsDoNotPrint() throws {
        let configuration = try parsed(file("database: {url: 'postgres://u:hunter2@h/d'}"))
        #expect(!"\(configuration)".contains("hunter2"))
        #expect(!String(reflecting: configuration).contains("hunter2"))
        var dumped = ""
        dump(configuration.boot, to: &dumped)
        #expect(!dumped.contains("hunter2"))
    }

    @Test func variablesAndFilesAreReplaced() throws {
        #expect(try parsed(file("database: {url: 'file:/secret'}")).boot.database?.reveal() == "postgres://h/d")
        #expect(try parsed(file("node: a${X}b$$c"), variables: ["X": "1"]).boot.node == "a1b$c")
        #expect(try parsed(file("drain: ${D}"), variables: ["D": "3s"]).boot.drain == .seconds(3))
    }

    @Test func everyFieldOfARouteIsRead() throws {
        let route = try #require(
            try parsed(
                file(
                    routes: """
                          - name: r
                            match: {host: "*.Example.com", pattern: "/a/{x}/b", methods: [PUT, GET], headers: {X-B: "*", X-A: "1"}}
                            service: {name: s, version: "1.10"}
                            upstream: u
                            rewrite: /c/{x}
                            timeouts: {connect: 1s, first_byte: 2s, idle: 3s, total: 4s}
                            body_limit: 1MiB
                            key_query: k
                            deprecated: refuse
                            charge: always
                            units: 7
                            quota_unavailable: allow
                            upgrade: [websocket]
                            log: {query: true}
                            request_headers: {set: {X-C: "c"}, remove: [X-D]}
                        """)
            ).traffic.routes.routes.first)
        #expect(route.match.host == .suffix(Array(".example.com".utf8)))
        #expect(route.match.path == .pattern([.literal(Array("a".utf8)), .parameter("x"), .literal(Array("b".utf8))]))
        #expect(route.match.methods == ["GET", "PUT"])
        #expect(route.match.fields == [.init(name: "x-a", value: "1"), .init(name: "x-b")])
        #expect(route.service == .init(name: "s", version: "1.10"))
        let settings = route.settings
        #expect(settings.timeouts.connect == .seconds(1) && settings.timeouts.firstByte == .seconds(2))
        #expect(settings.timeouts.idle == .seconds(3) && settings.timeouts.total == .seconds(4))
        #expect(settings.bodyLimit == 1 << 20 && settings.keyQuery == "k" && !settings.deprecatedPasses)
        #expect(settings.charge == .always && settings.units == 7 && settings.outage == .allow)
        #expect(settings.logsQuery && settings.takesWebSocket)
        #expect(settings.headers.replace == [.init(name: "X-C", value: "c")] && settings.headers.remove == ["x-d"])
        #expect(settings.rewrite == .path([.literal(Array("/c/".utf8)), .segment(1)]))
    }

    @Test func anUpstreamMayReportTheUnits() throws {
        func settings(_ units: String) throws -> Route.Settings? {
            try parsed(file(routes: "  - {name: a, service: s, upstream: u, units: \(units)}")).traffic.routes.routes.first?.settings
        }
        let reported = try settings("{max: 10, header: X-Units-Used}")
        #expect(reported?.units == 10 && reported?.unitsHeader == "x-units-used")
        #expect(try settings("{max: 1, header: Pandora-Units}")?.unitsHeader == "pandora-units")
        let plain = try settings("3")
        #expect(plain?.units == 3 && plain?.unitsHeader == nil)
    }

    @Test(arguments: [
        ("1us", Duration.microseconds(1)), ("250ms", .milliseconds(250)), ("10s", .seconds(10)), ("5m", .seconds(300)),
        ("2h", .seconds(7200)), ("1d", .seconds(86_400)),
    ]) func durationsAreRead(text: String, value: Duration) throws {
        // The one setting whose range takes all of these.
        let configuration = try? parsed(file("keys: {stale: \(text)}"))
        #expect(configuration?.boot.keys.stale == value)
    }

    @Test(arguments: [("0B", 0), ("512B", 512), ("16KiB", 16384), ("1MiB", 1 << 20), ("1GiB", 1 << 30), ("1TiB", 1 << 40)])
    func sizesAreRead(text: String, value: Int) throws {
        #expect(try parsed(file("limits: {request_body: \(text)}")).boot.limits.requestBody == value)
    }

    @Test func flowsGiveRoutesTheirRoles() throws {
        let routes = ["a", "b", "c"].map { "  - {name: \($0), match: {path: /\($0)}, service: s, upstream: u}" }.joined(separator: "\n")
        let traffic = try parsed(file("flows: {f: {start: a, steps: [b], finish: c, ttl: 1m, units: 2}}", routes: routes)).traffic
        #expect(traffic.routes.routes.map(\.settings.flow) == [.start(flow: "f"), .step(flow: "f", index: 0), .finish(flow: "f")])
        #expect(traffic.flows.first?.timeToLive == .seconds(60) && traffic.flows.first?.units == 2)
        #expect(traffic.flows.first?.success == [200...399])
        let picky = try parsed(file("flows: {f: {start: a, finish: c, success: [200-201, 404]}}", routes: routes)).traffic
        #expect(picky.flows.first?.success == [200...201, 404...404])
        let upgraded = routes.replacingOccurrences(of: "upstream: u", with: "upstream: u, upgrade: [websocket]")
        let refused = faults(file("flows: {f: {start: a, finish: c}}", routes: upgraded))
        #expect(refused.first?.hasSuffix("error: route 'a' has 'upgrade', which no hop of a flow can have") == true && refused.count == 2)
    }
}

/// Files with faults, and what is said about them: exactly.
@Suite struct ConfigFaultTests {
    @Test(arguments: [
        // Keys.
        ("liste: 1.2.3.4:1", "f:6:1: error: unknown key 'liste'; did you mean 'listen'?"),
        ("zzz: 1", "f:6:1: error: unknown key 'zzz'"),
        ("limits:\n  header_feild: 1KiB", "f:7:3: error: unknown key 'header_feild' in limits; did you mean 'header_field'?"),
        ("drain: 1s\ndrain: 2s", "f:7:1: error: key 'drain' is used twice"),
        ("limits: {header_fields: 9,", "f:7:1: error: no YAML: did not find expected node content"),
        // Types and ranges.
        ("workers: many", "f:6:10: error: workers must be a whole number, found 'many'"),
        ("workers: 0", "f:6:10: error: workers must be between 1 and 256, found 0"),
        ("limits: 3", "f:6:9: error: limits must be a mapping, found '3'"),
        ("node: [a]", "f:6:7: error: node must be a single value, found a list"),
        ("node:", "f:6:6: error: node has no value"),
        ("spool: {sync: allways}",
         "f:6:15: error: spool.sync must be one of none, interval, always, found 'allways'; did you mean 'always'?"),
        ("drain: 10", "f:6:8: error: drain: a duration needs a unit; did you mean '10s'?"),
        ("drain: 10 s", "f:6:8: error: drain: ' s' is no unit of time; use us, ms, s, m, h or d"),
        ("drain: soon", "f:6:8: error: drain: expected a duration such as 250ms, 10s or 5m, found 'soon'"),
        ("drain: 2h", "f:6:8: error: drain must be between 0s and 1h, found '2h'"),
        ("quota: {recall_wait: 2s}", "f:6:22: error: quota.recall_wait must be between 10ms and 1s, found '2s'"),
        ("drain: 9999999999999d", "f:6:8: error: drain: '9999999999999d' is too long"),
        ("spool: {size: 10}", "f:6:15: error: spool.size: a size needs a unit; did you mean '10B'?"),
        ("spool: {size: 10GB}", "f:6:15: error: spool.size: 'GB' is no unit of size; use B, KiB, MiB, GiB or TiB; did you mean '10GiB'?"),
        ("spool: {size: 1KiB}", "f:6:15: error: spool.size must be between 32MiB and 1TiB, found '1KiB'"),
        // Secrets.
        ("database: {url: '${NOT_SET}'}", "f:6:17: error: environment variable NOT_SET is not set"),
        ("database: {url: 'file:/nowhere'}", "f:6:17: error: database.url: cannot read file '/nowhere'"),
        ("database: {url: mysql://u:secret@h}", "f:6:17: error: database.url must begin with postgres:// or postgresql:// or file:"),
        ("database: {}", "f:6:11: error: database needs 'url'"),
        // Flows.
        ("flows: {f: {start: al, finish: all}}", "f:6:20: error: flow 'f' names route 'al', which does not exist; did you mean 'all'?"),
        ("flows: {f: {start: all, finish: all}}", "f:6:33: error: route 'all' has a role in a flow already"),
    ]) func bootAndFlows(more: String, expected: String) { #expect(faults(file(more)) == [expected]) }

    @Test(arguments: [
        ("localhost:1", "f:1:9: error: listen must be a numeric address, found 'localhost'; did you mean '127.0.0.1:1'?"),
        ("1.2.3.4:70000", "f:1:9: error: listen must be an address and a port such as 0.0.0.0:8080 or [::]:8080, found '1.2.3.4:70000'"),
    ]) func listenAddresses(address: String, expected: String) {
        #expect(faults(file().replacing("127.0.0.1:0", with: address)) == [expected])
    }

    @Test(arguments: [
        ("{name: a, service: s, upstream: uu}", "f:5:37: error: upstream 'uu' does not exist; did you mean 'u'?"),
        ("{name: a, service: s}", "f:5:6: error: routes[0] needs 'upstream'"),
        ("{name: a, upstream: u}", "f:5:6: error: routes[0] needs 'service'"),
        ("{name: a, servce: s, service: s, upstream: u}", "f:5:15: error: unknown key 'servce' in routes[0]; did you mean 'service'?"),
        ("{name: a b, service: s, upstream: u}",
         "f:5:12: error: the name of a route is 1 to 63 letters, digits, '.', '-' or '_', found 'a b'"),
        ("{name: a, service: S, upstream: u}",
         "f:5:24: error: a service's name is lower case letters and digits with '.', '-' or '_' between them, found 'S'"),
        ("{name: a, service: s, upstream: u, match: {path: x}}",
         "f:5:54: error: routes[0].match.path must begin with '/'; did you mean '/x'?"),
        ("{name: a, service: s, upstream: u, match: {path: /a?b}}",
         "f:5:54: error: routes[0].match.path must not have a query or a fragment; did you mean '/a'?"),
        ("{name: a, service: s, upstream: u, match: {path: /a/../b}}",
         "f:5:54: error: routes[0].match.path has a segment '.' or '..'; no such request is served"),
        ("{name: a, service: s, upstream: u, match: {prefix: /a/}}",
         "f:5:56: error: routes[0].match.prefix ends on a segment without a '/'; did you mean '/a'?"),
        ("{name: a, service: s, upstream: u, match: {prefix: /a/*}}",
         "f:5:56: error: routes[0].match.prefix takes everything below it without a '*'; did you mean '/a'?"),
        ("{name: a, service: s, upstream: u, match: {pattern: '/a{x}'}}",
         "f:5:57: error: routes[0].match.pattern: a parameter is a whole segment such as {name}, found 'a{x}'"),
        ("{name: a, service: s, upstream: u, match: {path: /a, prefix: /b}}",
         "f:5:58: error: routes[0].match has 'path' and 'prefix'; a route has one of path, prefix and pattern"),
        ("{name: a, service: s, upstream: u, match: {methods: [get]}}", "f:5:58: error: methods are case-sensitive; did you mean 'GET'?"),
        ("{name: a, service: s, upstream: u, match: {host: a.b:80}}",
         "f:5:54: error: a host is matched without its port; did you mean 'a.b'?"),
        ("{name: a, service: s, upstream: u, match: {host: a.*.b}}",
         "f:5:54: error: 'a.*.b' is no host; a '*' may only stand for the first labels, as in *.example.com"),
        ("{name: a, service: s, upstream: u, strip_prefix: /b, match: {prefix: /a}}",
         "f:5:54: error: routes[0].strip_prefix '/b' is not how every path of the route begins"),
        ("{name: a, service: s, upstream: u, rewrite: '/{idd}', match: {pattern: '/a/{id}'}}",
         "f:5:49: error: routes[0].rewrite: the route's pattern has no parameter 'idd'; did you mean 'id'?"),
        ("{name: a, service: s, upstream: u, charge: onsuccess}",
         "f:5:48: error: routes[0].charge must be one of on_success, always, never, found 'onsuccess'; did you mean 'on_success'?"),
        ("{name: a, service: s, upstream: u, upgrade: [websockets]}",
         "f:5:50: error: routes[0].upgrade may list websocket, found 'websockets'; did you mean 'websocket'?"),
        ("{name: a, service: s, upstream: u, upgrade: websocket}", "f:5:49: error: routes[0].upgrade must be a list, found 'websocket'"),
        ("{name: a, service: s, upstream: u, units: -1}", "f:5:47: error: routes[0].units must be between 0 and 1000000000000, found -1"),
        ("{name: a, service: s, upstream: u, units: {max: 3}}", "f:5:48: error: routes[0].units needs 'header'"),
        ("{name: a, service: s, upstream: u, units: {header: X-U}}", "f:5:48: error: routes[0].units needs 'max'"),
        ("{name: a, service: s, upstream: u, units: {max: 0, header: X-U}}",
         "f:5:53: error: routes[0].units.max must be between 1 and 1000000000000, found 0"),
        ("{name: a, service: s, upstream: u, units: {max: 3, heder: X-U, header: X-U}}",
         "f:5:56: error: unknown key 'heder' in routes[0].units; did you mean 'header'?"),
        ("{name: a, service: s, upstream: u, units: {max: 3, header: X U}}", "f:5:64: error: 'X U' is no name of a header field"),
        ("{name: a, service: s, upstream: u, units: {max: 3, header: Content-Length}}",
         "f:5:64: error: header field 'Content-Length' belongs to the gateway"),
        ("{name: a, service: s, upstream: u, units: {max: 3, header: Pandora-Flow}}",
         "f:5:64: error: header field 'Pandora-Flow' belongs to the gateway"),
        ("{name: a, service: s, upstream: u, units: [3]}", "f:5:47: error: routes[0].units must be a single value, found a list"),
        ("{name: a, service: s, upstream: u, request_headers: {remove: [Host]}}",
         "f:5:67: error: header field 'Host' belongs to the gateway; use host_header of the upstream"),
        ("{name: a, service: s, upstream: u}\n  - {name: a, service: s, upstream: u, match: {path: /b}}",
         "f:6:12: error: route 'a' exists already, in line 5"),
        ("{name: a, service: s, upstream: u}\n  - {name: b, service: s, upstream: u}",
         "f:6:6: error: route 'b' can never match: route 'a' in line 5 has the same conditions"),
    ]) func routes(route: String, expected: String) { #expect(faults(file(routes: "  - \(route)")) == [expected]) }

    @Test(arguments: [
        ("u: {targets: []}", "f:3:16: error: upstreams.u.targets must not be empty"),
        ("u: {targets: ['http://h:1/x']}",
         "f:3:17: error: upstreams.u.targets[0] must be host:port, found 'http://h:1/x'; leave the scheme to 'scheme': 'h:1'"),
        ("u: {targets: ['h:1', 'h:1']}", "f:3:24: error: target h:1 is listed twice; give it a weight instead"),
        ("u: {targets: [{address: 'h:1', weight: 0}]}", "f:3:42: error: upstreams.u.targets[0].weight must be between 1 and 1000, found 0"),
        ("u: {targets: [h:1], tls: {verify: false}}",
         "f:3:23: error: upstreams.u.tls has no use with scheme http; did you mean 'scheme: https'?"),
        ("u: {targets: [h:1], scheme: htps}",
         "f:3:31: error: upstreams.u.scheme must be one of http, https, found 'htps'; did you mean 'https'?"),
    ]) func upstreams(upstream: String, expected: String) { #expect(faults(file(upstreams: "  \(upstream)")) == [expected]) }

    @Test(
        arguments: ["start", "finish", "steps"],
        ["units: 3", "units: {max: 3, header: X-U}", "charge: never", "quota_unavailable: allow"])
    func whatAFlowCostsOnlyItSays(_ role: String, _ setting: String) {
        let costing = ["start": "a", "finish": "b", "steps": "c"][role]!
        let routes = ["a", "b", "c"].map { name in
            "  - {name: \(name), match: {path: /\(name)}, service: s, upstream: u\(name == costing ? ", \(setting)" : "")}"
        }
        let name = setting.prefix { $0 != ":" }
        let place = "f:\(5 + ["a", "b", "c"].firstIndex(of: costing)!):\(61 + name.count)"
        #expect(
            faults(file("flows: {f: {start: a, steps: [c], finish: b}}", routes: routes.joined(separator: "\n"))) == [
                "\(place): error: route '\(costing)' is of flow 'f', which reserves its units when it starts and is charged when it "
                    + "succeeds: '\(name)' has no use there; see 'units', 'success' and 'on_failure' of the flow"
            ])
    }

    @Test(arguments: [
        ("[]", "f:7:43: error: flows.f.success must not be empty"),
        ("200", "f:7:43: error: flows.f.success must be a list, found '200'"),
        ("[2xx]", "f:7:44: error: flows.f.success lists statuses from 200 to 599, or ranges such as 200-299, found '2xx'"),
        ("[100]", "f:7:44: error: flows.f.success lists statuses from 200 to 599, or ranges such as 200-299, found '100'"),
        ("[200, 600]", "f:7:49: error: flows.f.success lists statuses from 200 to 599, or ranges such as 200-299, found '600'"),
        ("[299-200]", "f:7:44: error: flows.f.success lists statuses from 200 to 599, or ranges such as 200-299, found '299-200'"),
        ("[200-]", "f:7:44: error: flows.f.success lists statuses from 200 to 599, or ranges such as 200-299, found '200-'"),
        ("[200-1-2]", "f:7:44: error: flows.f.success lists statuses from 200 to 599, or ranges such as 200-299, found '200-1-2'"),
    ]) func successOfAFlowIsStatuses(success: String, expected: String) {
        let routes = ["a", "b"].map { "  - {name: \($0), match: {path: /\($0)}, service: s, upstream: u}" }.joined(separator: "\n")
        #expect(faults(file("flows: {f: {start: a, finish: b, success: \(success)}}", routes: routes)) == [expected])
    }

    @Test(arguments: [
        ("units: 1000000000001", "41: error: flows.f.units must be between 0 and 1000000000000, found 1000000000001"),
        ("units: 9223372036854775808", "41: error: flows.f.units must be a whole number, found '9223372036854775808'"),
        ("units: -1", "41: error: flows.f.units must be between 0 and 1000000000000, found -1"),
        ("ttl: 0s", "39: error: flows.f.ttl must be between 1s and 1d, found '0s'"),
        ("ttl: 2d", "39: error: flows.f.ttl must be between 1s and 1d, found '2d'"),
        ("max_time: 31d", "44: error: flows.f.max_time must be between 1s and 30d, found '31d'"),
        ("max_time: 299s", "44: error: max_time must not be shorter than ttl"),
        ("max_hops: 1", "44: error: flows.f.max_hops must be between 2 and 1000000, found 1"),
        ("max_open: 0", "44: error: flows.f.max_open must be between 1 and 1000000, found 0"),
    ]) func numbersOfAFlowHaveBounds(setting: String, expected: String) {
        let routes = ["a", "b"].map { "  - {name: \($0), match: {path: /\($0)}, service: s, upstream: u}" }.joined(separator: "\n")
        #expect(faults(file("flows: {f: {start: a, finish: b, \(setting)}}", routes: routes)) == ["f:7:\(expected)"])
    }

    @Test func routesThatCouldTieAreAmbiguous() {
        let routes = """
              - {name: a, service: s, upstream: u, match: {headers: {x: "1"}}}
              - {name: b, service: s, upstream: u, match: {headers: {y: "1"}}}
            """
        #expect(
            faults(file(routes: routes)) == [
                "f:6:47: error: routes 'b' and 'a' in line 5 both take some requests and neither is more specific; "
                    + "separate their methods or add a header condition"
            ])
    }

    @Test func allFaultsAreReportedInTheOrderOfTheFile() {
        let text = "drain: 1\nlisten: x\ndrain: 2s\nupstreams: {}\nroutes: 3\nfoo: 1"
        #expect(
            faults(text) == [
                "f:1:8: error: drain: a duration needs a unit; did you mean '1s'?",
                "f:2:9: error: listen must be an address and a port such as 0.0.0.0:8080 or [::]:8080, found 'x'",
                "f:3:1: error: key 'drain' is used twice",
                "f:5:9: error: routes must be a list, found '3'",
                "f:6:1: error: unknown key 'foo'",
            ])
    }

    @Test(arguments: ["", "# nothing\n", "- a\n", "just text", "\u{1}", "{", "a: &a [*a]", "a: *b"])
    func whatIsNoConfigurationHasFaults(text: String) {
        #expect(!faults(text).isEmpty)
    }
}
