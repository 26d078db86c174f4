-- Every node sees to retention: one at a time, and so few days at a time that neither locks run out nor the log stands for long.

-- Retention: drops the partitions of the oldest days that end at or before the given moment, thirty at most.  Returns how many;
-- 0 also where somebody else makes or drops partitions just now.
CREATE OR REPLACE FUNCTION pandora.drop_log_partitions(before timestamptz) RETURNS integer
LANGUAGE plpgsql SET lock_timeout = '2s' AS $$
DECLARE
    doomed  text;
    dropped integer := 0;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('pandora.ensure_log_partition', 0)) THEN
        RETURN 0;
    END IF;
    FOR doomed IN
        SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
         WHERE i.inhparent = 'pandora.request_logs'::regclass AND c.relname ~ '^request_logs_[0-9]{8}$'
           AND (to_date(right(c.relname, 8), 'YYYYMMDD') + 1)::timestamp AT TIME ZONE 'UTC' <= before
         ORDER BY c.relname LIMIT 30
    LOOP
        EXECUTE format('DROP TABLE pandora.%I', doomed);
        dropped := dropped + 1;
    END LOOP;
    RETURN dropped;
END
$$;
