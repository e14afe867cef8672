//! Between what a number of the configuration makes sense. Beyond it a timer overflows, nothing ever happens, or all
//! of the memory is promised to one part.

use dunlin_alerting::ChannelConfig;

use super::{Config, JournalChoice};
use crate::exit::Failure;

const HOUR: u64 = 3_600;
const DAY: u64 = 24 * HOUR;
const YEAR: u64 = 365 * DAY;
const KIB: u64 = 1 << 10;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
const COUNT_MAX: u64 = 1 << 32;
const NICE_MAX: i32 = 19;

pub(super) fn check(config: &Config) -> Result<(), Failure> {
    let Config { gateway, journal, registry, tsdb, copies, store, pipeline, alerting, console, .. } = config;
    let limits = &pipeline.limits;
    let retention = tsdb.retention_seconds.unwrap_or(YEAR);
    #[rustfmt::skip]
    let bounds = [
        ("http_connections_max", config.http_connections_max as u64, 1, 1_000_000),

        ("gateway.connections_max", gateway.connections_max as u64, 1, 100_000_000),
        ("gateway.workers", gateway.workers as u64, 0, 1_024),
        ("gateway.inflight_bytes_max", gateway.inflight_bytes_max as u64, 1, TIB),
        (
            "gateway.connection_inflight_bytes_max",
            gateway.connection_inflight_bytes_max as u64, 1, TIB,
        ),
        ("gateway.connection_children_max", gateway.connection_children_max as u64, 0, COUNT_MAX),
        ("gateway.device_children_max", gateway.device_children_max, 0, COUNT_MAX),
        ("gateway.admission.credentials_max", gateway.admission.credentials_max as u64, 2, COUNT_MAX),
        ("gateway.admission.valid_seconds", gateway.admission.valid_seconds.into(), 0, HOUR),
        ("tls.renewal.check_seconds", config.tls.renewal.check_seconds.into(), 1, DAY),
        ("tls.renewal.warn_days", config.tls.renewal.warn_days.into(), 0, 10_000),
        ("gateway.time.future_tolerance_seconds", gateway.time.future_tolerance_seconds, 0, 100 * YEAR),

        ("registry.connections_max", registry.connections_max.into(), 1, 10_000),
        ("registry.connect_millis_max", registry.connect_millis_max, 100, 60_000),
        ("registry.answer_millis_max", registry.answer_millis_max, 100, 600_000),
        ("registry.start_seconds_max", registry.start_seconds_max, 0, DAY),

        ("tsdb.retention_seconds", retention, 1, 1_000 * YEAR),
        ("tsdb.memtable_bytes_max", tsdb.memtable_bytes_max as u64, 64 * KIB, TIB),
        ("tsdb.flush_after_seconds", tsdb.flush_after_seconds, 1, DAY),
        ("tsdb.latest_devices_max", tsdb.latest_devices_max as u64, 0, COUNT_MAX),
        ("tsdb.fingerprint_bytes_max", tsdb.fingerprint_bytes_max as u64, 0, TIB),
        ("tsdb.query_memory_bytes_max", tsdb.query_memory_bytes_max as u64, KIB * KIB, TIB),
        ("tsdb.queries_max", tsdb.queries_max as u64, 1, 10_000),
        ("tsdb.query_threads", tsdb.query_threads as u64, 1, 1_024),
        ("tsdb.compact_every_seconds", tsdb.compact_every_seconds, 1, YEAR),
        ("tsdb.compact_quiet_seconds", tsdb.compact_quiet_seconds, 0, YEAR),

        ("copies.packet_minutes", copies.packet_minutes, 1, YEAR / 60),
        ("copies.id_hours", copies.id_hours, 1, YEAR / HOUR),
        ("copies.recent_ids_max", copies.recent_ids_max, 1 << 16, COUNT_MAX),

        ("store.chunk_bytes", store.chunk_bytes as u64, KIB, GIB),
        ("store.write_records_max", store.write_records_max as u64, 1, 10_000_000),
        ("store.gather_millis", store.gather_millis, 0, 60_000),
        ("store.commit_seconds", store.commit_seconds, 0, HOUR),
        ("store.sampling.keep_one_in", store.sampling.keep_one_in.into(), 1, 1_000_000),
        ("store.sampling.metrics", store.sampling.metrics.len() as u64, 0, 1_000),

        ("pipeline.checkpoint_seconds", pipeline.checkpoint_seconds, 0, DAY),
        ("pipeline.chunk_bytes", pipeline.chunk_bytes as u64, KIB, GIB),
        ("pipeline.inflow_seconds_max", pipeline.inflow_seconds_max, 0, HOUR),
        ("pipeline.gather_millis", pipeline.gather_millis, 0, 60_000),
        ("pipeline.limits.lateness_millis", limits.lateness_millis, 0, 1_000 * YEAR),
        ("pipeline.limits.group_wait_millis", limits.group_wait_millis, 0, DAY),
        ("pipeline.limits.idle_grace_seconds", limits.idle_grace_seconds, 0, YEAR),
        ("pipeline.limits.held_records_max", limits.held_records_max as u64, 1, 1_000_000),
        ("pipeline.limits.device_ttl_seconds", limits.device_ttl_seconds, 1, 100 * YEAR),
        ("pipeline.limits.devices_max", limits.devices_max as u64, 1, COUNT_MAX),

        ("alerting.link_seconds", alerting.link_seconds, 1, YEAR),
        ("alerting.digest_seconds", alerting.digest_seconds, 1, DAY),
        ("alerting.digest_alerts_max", alerting.digest_alerts_max, 1, 1_000_000),
        ("alerting.flapping.firings", alerting.flapping.firings, 2, 1_000_000),
        ("alerting.flapping.within_seconds", alerting.flapping.within_seconds, 1, DAY),
        ("alerting.flapping.quiet_seconds", alerting.flapping.quiet_seconds, 1, DAY),
        ("alerting.dependencies.wait_seconds", alerting.dependencies.wait_seconds, 0, HOUR),
        ("alerting.retry.pause_first_ms", alerting.retry.pause_first_ms, 1, 1_000 * DAY),
        ("alerting.retry.pause_longest_ms", alerting.retry.pause_longest_ms, 1, 1_000 * YEAR),

        ("console.sql_rows_max", console.sql_rows_max as u64, 1, 1 << 40),
        ("console.sql_timeout_seconds", console.sql_timeout_seconds, 1, DAY),
        ("console.query_points_max", console.query_points_max as u64, 1, 1 << 40),
        ("console.request_bytes_max", console.request_bytes_max as u64, 1, GIB),
        ("console.request_body_seconds_max", console.request_body_seconds_max, 1, HOUR),
    ];
    for (name, found, least, most) in bounds {
        within(name, found, least, most)?;
    }
    // The one on Kafka knows its own.
    if let JournalChoice::Disk(journal) = journal {
        within("journal.tail_cache_bytes", journal.tail_cache_bytes as u64, 0, TIB)?;
        within("journal.retention_seconds", journal.retention_seconds, 1, 1_000 * YEAR)?;
    }
    for (name, nice) in [("store.nice", store.nice), ("pipeline.nice", pipeline.nice)] {
        if !(0..=NICE_MAX).contains(&nice) {
            return Err(Failure::Invalid(format!("{name} must be from 0 to {NICE_MAX}, not {nice}")));
        }
    }
    for channel in &alerting.channel {
        let of = |what: &str| format!("alerting channel {:?}: {what}", channel.name());
        if let Some(seconds) = channel.timeout_seconds() {
            within(&of("timeout_seconds"), seconds, 1, HOUR)?;
        }
        if let ChannelConfig::Alertmanager(alertmanager) = channel {
            within(&of("refresh_seconds"), alertmanager.refresh_seconds, 1, DAY)?;
        }
    }
    for policy in &alerting.policy {
        for step in &policy.step {
            let name = format!("alerting policy {:?}: wait_seconds", policy.name);
            within(&name, step.wait_seconds, 1, 30 * DAY)?;
        }
    }
    for (n, route) in alerting.route.iter().enumerate() {
        within(&format!("alerting route {}: group_seconds", n + 1), route.group_seconds, 0, DAY)?;
    }
    Ok(())
}

fn within(name: &str, found: u64, least: u64, most: u64) -> Result<(), Failure> {
    match found {
        _ if (least..=most).contains(&found) => Ok(()),
        _ => Err(Failure::Invalid(format!("{name} must be from {least} to {most}, not {found}"))),
    }
}
