internal import GatewayCore
internal import GatewayStore
internal import Postgres

/// Questions to the database: one is under way while `isBusy`, and each ends in `finished` or `failed`.
extension Shipper {
    func open(_ spool: ShippedSpool) {
        isBusy = true
        target.open(spool.id, node: spool.node) { [self] result in
            switch result {
            case .failure(let error): failed(spool, error)
            case .success(let mark):
                spool.state = .open(epoch: mark.epoch)
                moved(spool, to: mark.shippedTo)
                if spool.progress != nil, spool.state != .abandoned { onOpened?(spool.id, mark.epoch) }
                finished()
            }
        }
    }

    /// The mark is where the database says.
    private func moved(_ spool: ShippedSpool, to mark: Int64) {
        spool.move(to: mark)
        tellRejected(spool)
        guard mark > spool.end else { return }
        onEvent?(.rolledBack(spool.id, mark: mark, end: spool.end))
        spool.state = .abandoned
    }

    func ship(_ spool: ShippedSpool, _ epoch: Int64) {
        isBusy = true
        spool.dueAt = nil
        do throws(FileError) {
            let framesMax = min(spool.framesMax ?? .max, settings.batchFrames)
            var piece = try spool.reader.read(
                from: spool.mark, to: spool.end, bytesMax: settings.batchBytes, framesMax: framesMax)
            if piece.end == spool.mark { piece = skipped(spool) }
            // A single frame that was refused twice is settled without its row.
            let isRejected = spool.refusals >= 2 && piece.frames.count == 1
            let (shipment, strange) = spool.cutter.cut(piece, epoch: epoch, withRows: !isRejected)
            spool.setAside(isRejected ? piece.frames : strange, of: piece)
            target.ship(shipment) { [self] result in
                switch result {
                case .success(.shipped(let overrun, let moved)):
                    counters.overrun += overrun
                    counters.moved += moved
                    shipped(spool, piece)
                case .success(.elsewhere):
                    // Whatever moved the mark, or if it is where we cut: not at once again.
                    pause(spool)
                    reread(spool, epoch)
                case .failure(let error): refused(spool, piece, error)
                }
            }
        } catch {
            onEvent?(.failed(spool.id, "\(error)"))
            pause(spool)
            isBusy = false
        }
    }

    /// Nothing readable lies at the mark: on to what can be read, or to the end.
    private func skipped(_ spool: ShippedSpool) -> SpoolReader.Piece {
        spool.reader.refresh()
        var piece = SpoolReader.Piece()
        piece.start = spool.mark
        piece.end = spool.reader.segments.first { $0 > spool.mark } ?? spool.end
        piece.damaged = piece.end - piece.start
        return piece
    }

    private func shipped(_ spool: ShippedSpool, _ piece: SpoolReader.Piece) {
        counters.batches += 1
        counters.frames += piece.frames.count
        if piece.damaged > 0 {
            counters.damagedBytes += piece.damaged
            onEvent?(.damaged(spool.id, bytes: piece.damaged))
        }
        spool.mark = piece.end
        tellRejected(spool)
        spool.progress?.shipped(to: piece.end, frames: Int64(piece.frames.count))
        if let framesMax = spool.framesMax {
            // Past the bad frame batches grow again; while it lies ahead it is met again and halved down to.
            let doubled = framesMax * 2
            (spool.framesMax, spool.refusals) = (doubled >= settings.batchFrames ? nil : doubled, 0)
        } else {
            spool.refusals = 0
        }
        finished()
    }

    private func tellRejected(_ spool: ShippedSpool) {
        let count = spool.takeRejected()
        guard count > 0 else { return }
        counters.rejected += count
        onEvent?(.rejected(spool.id, frames: count))
    }

    private func refused(_ spool: ShippedSpool, _ piece: SpoolReader.Piece, _ error: PostgresError) {
        guard error.blamesContents else { return failed(spool, error) }
        spool.takeBack()
        onEvent?(.failed(spool.id, "\(error)"))
        spool.refusals += 1
        if spool.refusals >= 2, piece.frames.count > 1 {
            // A half is not tried twice.
            (spool.framesMax, spool.refusals) = (piece.frames.count / 2, 1)
        } else if spool.refusals > 2 {
            // Refused without a row, too: not the frame's fault.
            pause(spool)
        }
        finished()
    }

    func reread(_ spool: ShippedSpool, _ epoch: Int64) {
        isBusy = true
        spool.mustReread = false
        target.mark(of: spool.id) { [self] result in
            switch result {
            case .failure(let error):
                spool.mustReread = true
                return failed(spool, error)
            // The database has lost the spool, or that we opened it.
            case .success(nil): spool.state = .closed
            case .success(let mark?) where mark.epoch < epoch: spool.state = .closed
            case .success(let mark?) where mark.epoch > epoch:
                onEvent?(.fenced(spool.id))
                spool.state = .abandoned
            case .success(let mark?):
                spool.state = .open(epoch: epoch)
                if mark.shippedTo != spool.mark { moved(spool, to: mark.shippedTo) }
            }
            finished()
        }
    }

    func returnLeases(_ spool: ShippedSpool, _ epoch: Int64) {
        isBusy = true
        target.returnLeases(of: spool.id, epoch: epoch) { [self] result in
            switch result {
            case .failure(let error) where error.sqlState?.code == "PN004":
                onEvent?(.fenced(spool.id))
                spool.state = .abandoned
                finished()
            case .failure(let error): failed(spool, error)
            case .success:
                spool.state = .finished(epoch: epoch)
                if !spool.isAnnounced {
                    spool.isAnnounced = true
                    onEvent?(.adopted(spool.id))
                    startRemoval(of: spool)
                }
                finished()
            }
        }
    }
}

extension PostgresError {
    /// What is shipped may be to blame: data that does not fit, a constraint, somebody's trigger, a row too large for an index
    /// (classes 22, 23, P0 and 54). Anything else, for instance a full disk, stops every row alike and is waited out.
    fileprivate var blamesContents: Bool {
        guard case .server(let state) = kind else { return false }
        return ["22", "23", "54", "P0"].contains(state.errorClass)
    }
}
