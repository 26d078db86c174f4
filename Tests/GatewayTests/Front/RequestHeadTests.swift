import Curl
import GatewayCore
import NIOHTTP1
import Testing

@testable import Gateway

@Suite struct RequestHeadTests {
    private static func secret() -> String {
        var random = SystemRandomNumberGenerator()
        return KeySecret(random: &random).text
    }

    private func read(
        _ fields: [(String, String)] = [], method: HTTPMethod = .GET, target: String = "/a", version: HTTPVersion = .http1_1,
        host: String? = "api.test", limits: LimitSettings = LimitSettings()
    ) throws(RequestHead.Fault) -> RequestHead {
        let all = (host.map { [("Host", $0)] } ?? []) + fields
        return try RequestHead(HTTPRequestHead(version: version, method: method, uri: target, headers: HTTPHeaders(all)), limits: limits)
    }

    private func refusal(_ body: () throws(RequestHead.Fault) -> RequestHead) -> Refusal? {
        do throws(RequestHead.Fault) { _ = try body() } catch { return error.refusal }
        return nil
    }

    // MARK: Framing

    @Test func aBodyIsAnnouncedOnceAndInOneWay() throws {
        #expect(try read().body == .none)
        #expect(try read([("content-length", "12")]).body == .length(12))
        #expect(try read([("Transfer-Encoding", "Chunked")]).body == .chunked)
        for value in ["", "+1", "-1", "1,1", "0x1", "9223372036854775808"] {
            #expect(refusal { () throws(RequestHead.Fault) in try read([("Content-Length", value)]) } == .requestMalformed, "\(value)")
        }
        #expect(
            refusal { () throws(RequestHead.Fault) in try read([("Content-Length", "1"), ("Content-Length", "1")]) } == .requestMalformed)
        #expect(
            refusal { () throws(RequestHead.Fault) in try read([("Content-Length", "1"), ("Transfer-Encoding", "chunked")]) }
                == .requestMalformed)
        #expect(refusal { () throws(RequestHead.Fault) in try read([("Transfer-Encoding", "gzip, chunked")]) } == .codingRefused)
        #expect(
            refusal { () throws(RequestHead.Fault) in try read([("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "chunked")]) }
                == .codingRefused)
        #expect(
            refusal { () throws(RequestHead.Fault) in try read([("Transfer-Encoding", "chunked")], version: .http1_0) }
                == .requestMalformed)
    }

    @Test func aHostIsThereOnceInHTTP11() throws {
        #expect(refusal { () throws(RequestHead.Fault) in try read(host: nil) } == .requestMalformed)
        #expect(refusal { () throws(RequestHead.Fault) in try read([("Host", "other")]) } == .requestMalformed)
        #expect(try read(version: .http1_0, host: nil).host == "")
    }

    @Test func anAbsoluteTargetNamesTheHost() throws {
        let head = try read(target: "http://other.test:81/x?y")
        #expect(head.host == "other.test:81" && head.target == "/x?y")
        #expect(try read(target: "http://other.test?y").target == "/?y")
        #expect(refusal { () throws(RequestHead.Fault) in try read(target: "http://user@other.test/") } == .requestMalformed)
        #expect(refusal { () throws(RequestHead.Fault) in try read(target: "http:///x") } == .requestMalformed)
    }

    @Test func limitsAndMethods() {
        var limits = LimitSettings()
        limits.requestTarget = 10
        #expect(refusal { () throws(RequestHead.Fault) in try read(target: "/123456789", limits: limits) } == nil)
        #expect(refusal { () throws(RequestHead.Fault) in try read(target: "/1234567890", limits: limits) } == .targetTooLong)
        #expect(refusal { () throws(RequestHead.Fault) in try read(method: .CONNECT) } == .methodRefused)
        #expect(refusal { () throws(RequestHead.Fault) in try read(method: .TRACE) } == .methodRefused)
    }

    /// The decoder puts U+FFFD in the place of bytes that are not UTF-8.
    @Test func whatTheDecoderAlteredIsRefused() {
        #expect(refusal { () throws(RequestHead.Fault) in try read(target: "/\u{fffd}") } == .requestMalformed)
        #expect(refusal { () throws(RequestHead.Fault) in try read([("X", "a\u{fffd}")]) } == .requestMalformed)
        // U+F000 begins with the same byte and is fine.
        #expect(refusal { () throws(RequestHead.Fault) in try read([("X", "\u{f000}")]) } == nil)
    }

    // MARK: The connection

    @Test func whatTheClientWantsOfTheConnection() throws {
        #expect(try read().keepsAlive)
        #expect(try !read([("Connection", "Close")]).keepsAlive)
        #expect(try !read(version: .http1_0).keepsAlive)
        #expect(try read([("Connection", "keep-alive")], version: .http1_0).keepsAlive)
        let upgrade = try read([("Connection", "upgrade"), ("Upgrade", "WebSocket")])
        #expect(upgrade.wantsUpgrade && upgrade.wantsWebSocket)
        #expect(try read([("Expect", "100-Continue")]).expectsContinue)
        #expect(try !read([("Expect", "100-continue")], version: .http1_0).expectsContinue)
        #expect(refusal { () throws(RequestHead.Fault) in try read([("Expect", "200-ok")]) } == .requestMalformed)
    }

    @Test func fieldsThatConnectionNamesAreOfTheConnection() throws {
        let head = try read([("X-Hop", "1"), ("Connection", "x-hop , close"), ("X-End", "2")])
        #expect(head.kinds == [.host, .dropped, .connection, .endToEnd])
    }

    /// What NIO's decoder knows of it, without naming fields.
    @Test func proxyConnectionIsReadAsConnectionIs() throws {
        #expect(try !read([("Proxy-Connection", "x-hop, close")]).keepsAlive)
        #expect(try read([("proxy-connection", "Keep-Alive")], version: .http1_0).keepsAlive)
        let head = try read([("X-Hop", "1"), ("Proxy-Connection", "x-hop, upgrade"), ("Upgrade", "x")])
        #expect(head.endsDecoding && head.kinds == [.host, .endToEnd, .proxyConnection, .upgrade])
    }

    @Test(arguments: [
        ("Transfer-Encoding", "chunked\t"), ("Transfer-Encoding", "chunked\u{600} "), ("Connection", "x, \u{301}upgrade"),
        ("Connection", "upgrade,\u{301}"), ("Connection", "a,\tupgrade"), ("Proxy-Connection", "upgrade\t"), ("Upgrade", "\u{600} "),
        ("Upgrade", "websocket\t"), ("Content-Length", "1\t"), ("Content-Length", "\u{661}"),
    ]) func whatEndsARequestIsPrintable(_ field: (String, String)) {
        do throws(RequestHead.Fault) {
            _ = try read([field])
            Issue.record("it is taken")
        } catch {
            #expect(error.refusal == .requestMalformed && error.detail == "a tab, or what is not ASCII, in \(field.0)")
        }
    }

    /// A blank and a mark that combines with it are one Character.
    @Test func valuesAreTrimmedByBytes() throws {
        #expect(try read([("Authorization", "Bearer \u{301}x \u{301}")]).key == .junk)
        #expect(try read([("X", "x "), ("Pandora-Flow", "f\u{600} ")]).flow == "f\u{600}")
        #expect(try read(target: "http://other.test/\u{301}x").target == "/\u{301}x")
        #expect(try read(target: "http://other.test?\u{301}").host == "other.test")
    }

    // MARK: Keys

    @Test func aKeyComesFromEitherField() throws {
        let secret = Self.secret()
        #expect(try read([("X-API-Key", secret)]).key == KeyCandidate.parse(secret.utf8))
        let bearer = try read([("Authorization", "bearer  \(secret) ")])
        #expect(bearer.key == KeyCandidate.parse(secret.utf8) && bearer.isAuthorizationKey)
        #expect(try read([("X-API-Key", "junk")]).key == .junk)
        #expect(try read([("Authorization", "Bearer junk")]).key == .junk)
        #expect(try read([("Authorization", "Basic YTpi")]).key == nil)
        #expect(try read().key == nil)
    }

    @Test func oneKeyTwiceIsFineAndTwoKeysAreNot() throws {
        let (one, other) = (Self.secret(), Self.secret())
        #expect(try !read([("X-API-Key", one), ("Authorization", "Bearer \(one)")]).hasTwoKeys)
        #expect(try read([("X-API-Key", one), ("Authorization", "Bearer \(other)")]).hasTwoKeys)
        #expect(try read([("X-API-Key", one), ("X-API-Key", other)]).hasTwoKeys)
        var queried = try read([("X-API-Key", one)])
        queried.noteQueryKeys([Array(one.utf8)])
        #expect(!queried.hasTwoKeys)
        queried.noteQueryKeys([Array(other.utf8)])
        #expect(queried.hasTwoKeys)
    }

    /// A client may have a token for the service behind the gateway beside its key for the gateway.
    @Test func aTokenThatIsNoKeyBesideAKeyIsTheUpstreams() throws {
        let head = try read([("X-API-Key", Self.secret()), ("Authorization", "Bearer eyJhbGciOiJIUzI1NiJ9.e30.x")])
        #expect(!head.hasTwoKeys && !head.isAuthorizationKey)
    }

    // MARK: Kinds

    @Test(arguments: [
        ("X-API-KEY", FieldKind.apiKey), ("Pandora-Client", .dropped), ("pandora-flow", .flow), ("Pandora-Start-Point", .startPoint),
        ("Pandora", .endToEnd), ("Pandoras-Box", .endToEnd), ("TE", .dropped), ("Keep-Alive", .dropped),
        ("Proxy-Connection", .proxyConnection),
        ("Proxy-Authorization", .dropped), ("Trailer", .dropped), ("Cookie", .endToEnd), ("Via", .via), ("X-Forwarded-For", .forwardedFor),
        ("Transfer-Encoding", .transferEncoding), ("X-Forwarded-Proto", .forwardedProto), ("X-Forwarded-Host", .forwardedHost),
        ("Content-Length", .contentLength), ("Content-Type", .endToEnd), ("traceparent", .traceparent), ("tracestate", .endToEnd),
        ("", .endToEnd),
    ])
    func aFieldsKindIsInItsName(_ name: String, _ kind: FieldKind) { #expect(FieldKind(name) == kind) }
}
