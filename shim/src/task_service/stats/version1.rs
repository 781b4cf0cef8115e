//! The figures as hosts with cgroup v1 know them.
//!
//! The guest has cgroup v2 in any case. What v1 counts and v2 does not stays 0: pages in and out, and the times and queues
//! of block I/O.

use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::cgroups_v2::metrics as v2;

/// What v1 says where there is no limit: the largest number of whole pages (mm/page_counter.c, PAGE_COUNTER_MAX).
const NO_LIMIT: u64 = 0x7fff_ffff_ffff_f000;

/// The same figures as v1's metrics.
pub(super) fn metrics(of: &v2::Metrics) -> v1::Metrics {
    v1::Metrics {
        pids: Some(v1::PidsStat {
            current: of.pids.current,
            // v1 has 0 for no limit.
            limit: if of.pids.limit == u64::MAX { 0 } else { of.pids.limit },
            ..Default::default()
        })
        .into(),
        cpu: Some(cpu(&of.cpu)).into(),
        memory: Some(memory(&of.memory, &of.memory_events)).into(),
        blkio: Some(block_io(&of.io)).into(),
        hugetlb: of.hugetlb.iter().map(huge_pages).collect(),
        memory_oom_control: Some(v1::MemoryOomControl {
            oom_kill: of.memory_events.oom_kill,
            ..Default::default()
        })
        .into(),
        ..Default::default()
    }
}

/// v1 counts nanoseconds.
fn nanoseconds(microseconds: u64) -> u64 {
    microseconds.saturating_mul(1000)
}

fn cpu(of: &v2::CPUStat) -> v1::CPUStat {
    v1::CPUStat {
        usage: Some(v1::CPUUsage {
            total: nanoseconds(of.usage_usec),
            kernel: nanoseconds(of.system_usec),
            user: nanoseconds(of.user_usec),
            ..Default::default()
        })
        .into(),
        throttling: Some(v1::Throttle {
            periods: of.nr_periods,
            throttled_periods: of.nr_throttled,
            throttled_time: nanoseconds(of.throttled_usec),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    }
}

fn limit(of: u64) -> u64 {
    if of == u64::MAX { NO_LIMIT } else { of }
}

fn memory(of: &v2::MemoryStat, events: &v2::MemoryEvents) -> v1::MemoryStat {
    v1::MemoryStat {
        cache: of.file,
        rss: of.anon,
        rss_huge: of.anon_thp,
        mapped_file: of.file_mapped,
        dirty: of.file_dirty,
        writeback: of.file_writeback,
        pg_fault: of.pgfault,
        pg_maj_fault: of.pgmajfault,
        inactive_anon: of.inactive_anon,
        active_anon: of.active_anon,
        inactive_file: of.inactive_file,
        active_file: of.active_file,
        unevictable: of.unevictable,
        hierarchical_memory_limit: limit(of.usage_limit),
        hierarchical_swap_limit: limit(of.usage_limit.saturating_add(of.swap_limit)),
        total_cache: of.file,
        total_rss: of.anon,
        total_rss_huge: of.anon_thp,
        total_mapped_file: of.file_mapped,
        total_dirty: of.file_dirty,
        total_writeback: of.file_writeback,
        total_pg_fault: of.pgfault,
        total_pg_maj_fault: of.pgmajfault,
        total_inactive_anon: of.inactive_anon,
        total_active_anon: of.active_anon,
        total_inactive_file: of.inactive_file,
        total_active_file: of.active_file,
        total_unevictable: of.unevictable,
        usage: Some(v1::MemoryEntry {
            limit: limit(of.usage_limit),
            usage: of.usage,
            max: of.max_usage,
            failcnt: events.max,
            ..Default::default()
        })
        .into(),
        // v1's swap figures are those of memory and swap together.
        swap: Some(v1::MemoryEntry {
            limit: limit(of.usage_limit.saturating_add(of.swap_limit)),
            usage: of.usage.saturating_add(of.swap_usage),
            ..Default::default()
        })
        .into(),
        kernel: Some(v1::MemoryEntry {
            limit: NO_LIMIT,
            usage: of.kernel_stack.saturating_add(of.slab),
            ..Default::default()
        })
        .into(),
        kernel_tcp: Some(v1::MemoryEntry { limit: NO_LIMIT, usage: of.sock, ..Default::default() }).into(),
        ..Default::default()
    }
}

fn block_io(of: &v2::IOStat) -> v1::BlkIOStat {
    let entries = |read: fn(&v2::IOEntry) -> u64, write: fn(&v2::IOEntry) -> u64| {
        let entry = |device: &v2::IOEntry, op: &str, value| v1::BlkIOEntry {
            op: op.to_owned(),
            major: device.major,
            minor: device.minor,
            value,
            ..Default::default()
        };
        of.usage
            .iter()
            .flat_map(|device| [entry(device, "Read", read(device)), entry(device, "Write", write(device))])
            .collect()
    };
    v1::BlkIOStat {
        io_service_bytes_recursive: entries(|device| device.rbytes, |device| device.wbytes),
        io_serviced_recursive: entries(|device| device.rios, |device| device.wios),
        ..Default::default()
    }
}

fn huge_pages(of: &v2::HugeTlbStat) -> v1::HugetlbStat {
    v1::HugetlbStat {
        usage: of.current,
        max: of.max,
        failcnt: of.failcnt,
        pagesize: of.pagesize.clone(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_nanoseconds_and_no_limit_is_what_v1_says() {
        let of = v2::Metrics {
            cpu: Some(v2::CPUStat { usage_usec: 3, system_usec: 1, user_usec: 2, ..Default::default() })
                .into(),
            memory: Some(v2::MemoryStat {
                usage: 4096,
                usage_limit: u64::MAX,
                swap_limit: u64::MAX,
                anon: 100,
                ..Default::default()
            })
            .into(),
            pids: Some(v2::PidsStat { current: 1, limit: u64::MAX, ..Default::default() }).into(),
            io: Some(v2::IOStat {
                usage: vec![v2::IOEntry { major: 8, rbytes: 1, wbytes: 2, ..Default::default() }],
                ..Default::default()
            })
            .into(),
            ..Default::default()
        };
        let metrics = metrics(&of);
        assert_eq!(
            (metrics.cpu.usage.total, metrics.cpu.usage.kernel, metrics.cpu.usage.user),
            (3000, 1000, 2000)
        );
        assert_eq!((metrics.memory.usage.usage, metrics.memory.usage.limit), (4096, NO_LIMIT));
        assert_eq!(metrics.memory.swap.limit, NO_LIMIT);
        assert_eq!((metrics.memory.total_rss, metrics.pids.limit), (100, 0));
        let io = &metrics.blkio.io_service_bytes_recursive;
        assert_eq!((io[0].op.as_str(), io[0].value, io[1].op.as_str(), io[1].value), ("Read", 1, "Write", 2));
    }
}
