/// What an upstream says that its answer costs, in the header field that the route names for it.
public enum UnitsReport: Sendable, Equatable {
    case units(Int64)
    /// Nothing that can be charged: then all units are that the request holds.
    case faulty(Fault)

    public enum Fault: String, Sendable {
        case absent = "the field is not there"
        case repeated = "the field is there more than once"
        case malformed = "the field is no whole number"
        case aboveBound = "the field says more than the route's max"
    }

    /// - Parameters:
    ///   - values: of all fields of the name, without surrounding white space.
    ///   - bound: what the request holds.
    public init(_ values: [ArraySlice<UInt8>], bound: Int64) {
        guard let value = values.first else { self = .faulty(.absent); return }
        guard values.count == 1 else { self = .faulty(.repeated); return }
        guard !value.isEmpty, value.allSatisfy({ 0x30...0x39 ~= $0 }) else { self = .faulty(.malformed); return }
        // Digits alone: what does not fit is too much.
        guard let units = Int64(String(decoding: value, as: UTF8.self)), units <= bound else {
            self = .faulty(.aboveBound)
            return
        }
        self = .units(units)
    }
}
