internal import GatewayCore
internal import NIOCore

// What the configuration says, in the terms of the parts that it is for.

extension SpoolSettings {
    init(_ spool: GatewayCore.SpoolSettings, node: String, refusals: RefusalRows) {
        self.init(root: spool.directory, node: node)
        sync =
            switch spool.sync {
            case .none: .none
            case .interval: .interval
            case .always: .always
            }
        bound = Int64(spool.size)
        self.refusals = refusals
    }
}

extension Shipper.Settings {
    init(_ boot: BootSettings) {
        self.init()
        delay = TimeAmount(boot.log.batchTime)
        batchFrames = boot.log.batchRows
        batchBytes = boot.log.batchBytes
        keep = TimeAmount(boot.spool.keep)
        bound = Int64(boot.spool.size)
    }
}

extension KeyCache.Limits {
    init(_ keys: KeySettings) {
        self.init()
        entries = keys.cache
        absent = keys.negativeCache
        absentFor = keys.negativeTime.wholeNanoseconds
        staleMax = keys.stale.wholeNanoseconds
    }
}

extension LeaseLimits {
    init(_ quota: QuotaSettings) {
        self.init()
        useFor = quota.leaseUse.wholeMicroseconds
        recallWait = quota.recallWait.wholeMicroseconds
    }
}

extension FlowLimits {
    init(_ quota: QuotaSettings) {
        self.init()
        recallWait = quota.recallWait.wholeMicroseconds
    }
}
