//! What CPUID tells the guest: what KVM can do, cut down to what a microVM needs, with the topology of this VM and
//! the frequency of its clocks.
//!
//! Each CPUID instruction is an exit, and kernels walk leaves: what is not there costs nothing.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;

/// The frequency at which KVM's local APIC timer counts (`APIC_BUS_CYCLE_NS` = 1).
const APIC_HZ: u32 = 1_000_000_000;

/// Basic leaves that stay; the rest is for hardware that the guest does not have (thermal sensors, cache allocation,
/// SGX, processor trace, AMX tiles, …). Leaf 0xD describes the state that XSAVE keeps.
const BASIC_LEAVES: &[u32] = &[0x0, 0x1, 0x2, 0x4, 0x6, 0x7, 0xB, 0xD];
/// Extended leaves that stay. 0x8000001D and 0x8000001E are AMD's caches and topology.
const EXTENDED_LEAVES: &[u32] = &[
    0x8000_0000,
    0x8000_0001,
    0x8000_0002,
    0x8000_0003,
    0x8000_0004,
    0x8000_0005,
    0x8000_0006,
    0x8000_0007,
    0x8000_0008,
    0x8000_001D,
    0x8000_001E,
    0x8000_0021,
];
/// KVM's own leaves.
const KVM_SIGNATURE: u32 = 0x4000_0000;
const KVM_FEATURES: u32 = 0x4000_0001;
/// The clocks' frequencies in kHz, as VMware defined it and other hypervisors took it over.
const HYPERVISOR_TIMING: u32 = 0x4000_0010;

// Bits of leaf 1.
const ECX_X2APIC: u32 = 1 << 21;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HYPER_THREADING: u32 = 1 << 28;
/// Intel's and AMD's virtualisation (AMD's is of leaf 0x80000001; its leaf 0x8000000A does not stay either). Where the host lets
/// guests have guests of their own, KVM's code for that is a large part of what a guest could attack.
const ECX_VMX: u32 = 1 << 5;
const ECX_SVM: u32 = 1 << 2;
/// MONITOR/MWAIT and the performance-monitoring capabilities, of which nothing works in here.
const ECX_MONITOR: u32 = 1 << 3;
const ECX_PDCM: u32 = 1 << 15;

/// AMX in leaf 7 (AMX-BF16, AMX-TILE, AMX-INT8): the tile state needs a permission that this VMM does not ask for.
const EDX_AMX: u32 = 1 << 22 | 1 << 24 | 1 << 25;
/// AMX in the mask of states of leaf 0xD (XTILECFG, XTILEDATA).
const XCR0_AMX: u32 = 1 << 17 | 1 << 18;

/// AMD: the performance counters' extensions of leaf 0x80000001.
const ECX_AMD_COUNTERS: u32 = 1 << 23 | 1 << 24 | 1 << 28;

/// What CPUID has to know about the VM.
#[derive(Debug, Clone, Copy)]
pub struct Topology {
    /// The number of vCPUs: cores of one package, without hyper-threads.
    pub vcpus: u32,
    /// The guest's TSC in kHz.
    pub tsc_khz: u32,
}

/// Why there is no CPUID for the guest.
#[derive(Debug, thiserror::Error)]
pub enum CpuidError {
    /// KVM does not say what it supports.
    #[error("KVM_GET_SUPPORTED_CPUID: {0}")]
    Supported(kvm_ioctls::Error),
    /// More entries than KVM takes.
    #[error("CPUID has too many entries")]
    TooMany,
}

/// What the host's KVM can offer; asked once per VM.
#[derive(Debug)]
pub struct Supported(Vec<kvm_cpuid_entry2>);

impl Supported {
    /// Asks KVM.
    pub fn query(kvm: &Kvm) -> Result<Self, CpuidError> {
        let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(CpuidError::Supported)?;
        Ok(Self(supported.as_slice().to_vec()))
    }

    /// The CPUID of the vCPU with the APIC identifier `id`.
    pub fn for_vcpu(&self, id: u32, topology: Topology) -> Result<CpuId, CpuidError> {
        let entries = build(&self.0, id, topology);
        CpuId::from_entries(&entries).map_err(|_| CpuidError::TooMany)
    }
}

fn build(supported: &[kvm_cpuid_entry2], id: u32, topology: Topology) -> Vec<kvm_cpuid_entry2> {
    let mut entries: Vec<_> = supported.iter().filter(|entry| stays(entry)).copied().collect();
    for entry in &mut entries {
        adjust(entry, id, topology);
    }
    entries.retain(|entry| entry.function != 0xB);
    entries.extend(core_topology(id, topology.vcpus));
    entries.push(hypervisor_timing(topology.tsc_khz));
    if is_intel(supported) {
        entries.push(crystal(topology.tsc_khz));
    }
    set_limits(&mut entries);
    entries
}

fn stays(entry: &kvm_cpuid_entry2) -> bool {
    match entry.function {
        0xD => entry.index < 32 && !(17..=18).contains(&entry.index),
        function @ (0x0..=0xFFFF) => BASIC_LEAVES.contains(&function),
        KVM_SIGNATURE | KVM_FEATURES => true,
        function => EXTENDED_LEAVES.contains(&function),
    }
}

/// Changes what depends on the VM or the vCPU.
fn adjust(entry: &mut kvm_cpuid_entry2, id: u32, topology: Topology) {
    let last = topology.vcpus.saturating_sub(1);
    match (entry.function, entry.index) {
        (0x1, _) => {
            entry.ebx = entry.ebx & 0x0000_FFFF | topology.vcpus << 16 | id << 24;
            entry.ecx &= !(ECX_MONITOR | ECX_PDCM | ECX_VMX);
            entry.ecx |= ECX_X2APIC | ECX_TSC_DEADLINE | ECX_HYPERVISOR;
            entry.edx &= !EDX_HYPER_THREADING;
            if topology.vcpus > 1 {
                entry.edx |= EDX_HYPER_THREADING;
            }
        }
        // Intel's caches: bits 14 to 25 count the threads that share one, bits 26 to 31 the cores of the package.
        (0x4, _) if entry.eax & 0x1F != 0 => {
            let level = entry.eax >> 5 & 0b111;
            let sharing = if level >= 3 { last } else { 0 };
            entry.eax = entry.eax & 0x3FFF | sharing << 14 | last.min(63) << 26;
        }
        (0x7, 0) => entry.edx &= !EDX_AMX,
        (0xD, 0) => entry.eax &= !XCR0_AMX,
        (0x8000_0001, _) => entry.ecx &= !(ECX_AMD_COUNTERS | ECX_SVM),
        // AMD's number of cores, and the width of the identifier that tells them apart.
        (0x8000_0008, _) => entry.ecx = last | width(topology.vcpus) << 12,
        (0x8000_001D, _) if entry.eax & 0x1F != 0 => {
            let level = entry.eax >> 5 & 0b111;
            let sharing = if level >= 3 { last } else { 0 };
            entry.eax = entry.eax & 0x3FFF | sharing << 14;
        }
        // AMD's own identifiers: APIC, core (with one thread), node (the only one).
        (0x8000_001E, _) => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (id, id & 0xFF, 0, 0),
        _ => {}
    }
}

/// Leaf 0xB: one thread per core, all cores in one package.
fn core_topology(id: u32, vcpus: u32) -> [kvm_cpuid_entry2; 3] {
    const THREADS: u32 = 1;
    const CORES: u32 = 2;
    let level = |index, shift, count, kind: u32| kvm_cpuid_entry2 {
        function: 0xB,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: kind << 8 | index,
        edx: id,
        ..Default::default()
    };
    [level(0, 0, 1, THREADS), level(1, width(vcpus), vcpus, CORES), level(2, 0, 0, 0)]
}

/// Leaf 0x15, by which the TSC is `ecx * ebx / eax` Hz, with the crystal at the APIC's frequency, since Linux takes
/// the one for the other. Linux reads it on Intel's processors only; on others it would be a reason to look for all
/// the leaves before it.
fn crystal(tsc_khz: u32) -> kvm_cpuid_entry2 {
    let (eax, ebx, ecx) = (APIC_HZ / 1000, tsc_khz, APIC_HZ);
    kvm_cpuid_entry2 { function: 0x15, eax, ebx, ecx, ..Default::default() }
}

/// The hypervisor's leaf with the frequencies.
fn hypervisor_timing(tsc_khz: u32) -> kvm_cpuid_entry2 {
    let (eax, ebx) = (tsc_khz, APIC_HZ / 1000);
    kvm_cpuid_entry2 { function: HYPERVISOR_TIMING, eax, ebx, ..Default::default() }
}

/// Whether leaf 0 says "GenuineIntel".
fn is_intel(supported: &[kvm_cpuid_entry2]) -> bool {
    let vendor = |entry: &kvm_cpuid_entry2| [entry.ebx, entry.edx, entry.ecx].map(u32::to_le_bytes).concat();
    supported.iter().find(|entry| entry.function == 0).is_some_and(|entry| vendor(entry) == b"GenuineIntel")
}

/// The first leaf of each kind says which is the last.
fn set_limits(entries: &mut [kvm_cpuid_entry2]) {
    let ranges = [(0x0, 0xFFFF), (KVM_SIGNATURE, KVM_SIGNATURE | 0xFFFF), (0x8000_0000, 0x8000_FFFF)];
    for (first, limit) in ranges {
        let functions = entries.iter().map(|entry| entry.function);
        let last = functions.filter(|function| (first..=limit).contains(function)).max();
        let entry = entries.iter_mut().find(|entry| entry.function == first);
        if let (Some(last), Some(entry)) = (last, entry) {
            entry.eax = last;
        }
    }
}

/// The bits that tell `count` things apart.
fn width(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, eax: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax, ecx: 0xFFFF_FFFF, edx: 0xFFFF_FFFF, ..Default::default() }
    }

    fn host() -> Vec<kvm_cpuid_entry2> {
        let [ebx, edx, ecx] = [*b"Genu", *b"ineI", *b"ntel"].map(u32::from_le_bytes);
        vec![
            kvm_cpuid_entry2 { eax: 0x20, ebx, ecx, edx, ..Default::default() },
            entry(0x1, 0, 0x806F8),
            entry(0x4, 0, 0x1 << 5 | 1),
            entry(0x4, 3, 0x3 << 5 | 3 | 63 << 26 | 127 << 14),
            entry(0x7, 0, 2),
            entry(0xB, 0, 1),
            entry(0xB, 1, 7),
            entry(0xD, 0, 0x602E7),
            entry(0xD, 18, 8192),
            entry(0x14, 0, 1),
            entry(0x1F, 0, 1),
            entry(KVM_SIGNATURE, 0, KVM_FEATURES),
            entry(KVM_FEATURES, 0, 0x0100_7EFB),
            entry(0x8000_0000, 0, 0x8000_0026),
            entry(0x8000_0001, 0, 0x806F8),
            entry(0x8000_0008, 0, 0x3030),
            entry(0x8000_000A, 0, 1),
            entry(0x8000_001E, 0, 9),
            entry(0x8000_0026, 0, 9),
        ]
    }

    fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        *entries.iter().find(|entry| (entry.function, entry.index) == (function, index)).unwrap()
    }

    #[test]
    fn the_limits_name_the_last_leaf_that_stays() {
        let entries = build(&host(), 0, Topology { vcpus: 1, tsc_khz: 2_000_000 });
        assert_eq!(find(&entries, 0, 0).eax, 0x15);
        assert_eq!(find(&entries, KVM_SIGNATURE, 0).eax, HYPERVISOR_TIMING);
        assert_eq!(find(&entries, 0x8000_0000, 0).eax, 0x8000_001E);
        assert!(!entries.iter().any(|entry| matches!(entry.function, 0x14 | 0x1F | 0x8000_0026)));
    }

    #[test]
    fn other_processors_than_intels_have_no_leaf_0x15() {
        let mut host = host();
        host[0].ebx = u32::from_le_bytes(*b"Auth");
        let entries = build(&host, 0, Topology { vcpus: 1, tsc_khz: 2_000_000 });
        assert_eq!(find(&entries, 0, 0).eax, 0xD);
        assert_eq!(find(&entries, HYPERVISOR_TIMING, 0).eax, 2_000_000);
    }

    #[test]
    fn leaf_0x15_gives_the_tsc_frequency() {
        let entries = build(&host(), 0, Topology { vcpus: 1, tsc_khz: 2_445_407 });
        let leaf = find(&entries, 0x15, 0);
        let hz = u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax);
        assert_eq!(hz, 2_445_407_000);
        assert_eq!(find(&entries, HYPERVISOR_TIMING, 0).eax, 2_445_407);
    }

    #[test]
    fn every_vcpu_has_its_identifier_and_sees_all_cores_in_one_package() {
        let entries = build(&host(), 5, Topology { vcpus: 6, tsc_khz: 1 });
        assert_eq!(find(&entries, 1, 0).ebx >> 16, 5 << 8 | 6);
        assert_eq!(find(&entries, 1, 0).edx & EDX_HYPER_THREADING, EDX_HYPER_THREADING);
        let cores = find(&entries, 0xB, 1);
        assert_eq!((cores.eax, cores.ebx, cores.ecx, cores.edx), (3, 6, 0x201, 5));
        assert_eq!(find(&entries, 0xB, 2).ebx, 0);
        assert_eq!(find(&entries, 0x4, 0).eax, 1 << 5 | 1 | 5 << 26, "the first cache is its core's own");
        assert_eq!(find(&entries, 0x4, 3).eax, 3 << 5 | 3 | 5 << 14 | 5 << 26, "the last one is shared");
        assert_eq!(find(&entries, 0x8000_0008, 0).ecx, 5 | 3 << 12);
        assert_eq!(find(&entries, 0x8000_001E, 0).eax, 5);
    }

    #[test]
    fn state_that_needs_permission_is_not_offered() {
        let entries = build(&host(), 0, Topology { vcpus: 1, tsc_khz: 1 });
        assert_eq!(find(&entries, 0xD, 0).eax, 0x2E7);
        assert_eq!(find(&entries, 7, 0).edx & EDX_AMX, 0);
        assert!(!entries.iter().any(|entry| (entry.function, entry.index) == (0xD, 18)));
    }

    #[test]
    fn a_guest_has_no_guests() {
        let entries = build(&host(), 0, Topology { vcpus: 1, tsc_khz: 1 });
        assert_eq!(find(&entries, 1, 0).ecx & ECX_VMX, 0);
        assert_eq!(find(&entries, 0x8000_0001, 0).ecx & ECX_SVM, 0);
        assert!(!entries.iter().any(|entry| entry.function == 0x8000_000A));
    }

    #[test]
    fn a_single_vcpu_is_no_hyper_thread() {
        let entries = build(&host(), 0, Topology { vcpus: 1, tsc_khz: 1 });
        assert_eq!(find(&entries, 1, 0).edx & EDX_HYPER_THREADING, 0);
        assert_eq!(find(&entries, 0xB, 1).eax, 0);
    }
}
