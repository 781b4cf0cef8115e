use super::*;

#[test]
fn every_filter_can_be_built() {
    Filters::build().unwrap();
}

#[test]
fn a_filter_that_cannot_be_built_is_an_error_that_names_the_role() {
    // A system call has six arguments.
    let mut seventh = *rules(Role::Vsock).next().unwrap();
    seventh.conditions = &[Condition::IsNull(6)];
    let with_seventh = |role| {
        let own = rules(role).copied().chain((role == Role::Vsock).then_some(seventh));
        own.collect::<Vec<_>>().leak().iter()
    };
    let error = Filters::of(with_seventh).unwrap_err().to_string();
    assert!(error.contains("role vsock cannot be built"), "{error}");
}

#[test]
fn a_role_without_a_filter_is_not_let_in() {
    let error = Filters(BTreeMap::new()).install(Role::Fs).unwrap_err().to_string();
    assert!(error.contains("role fs cannot be installed"), "{error}");
}

#[test]
fn no_role_may_make_threads_programs_sockets_of_the_network_or_mounts() {
    let forbidden = [
        libc::SYS_clone,
        libc::SYS_clone3,
        libc::SYS_fork,
        libc::SYS_vfork,
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_pidfd_getfd,
        libc::SYS_socket,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_mount,
        libc::SYS_move_mount,
        libc::SYS_open_tree,
        libc::SYS_fsopen,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_chroot,
        libc::SYS_setns,
        libc::SYS_unshare,
        libc::SYS_open_by_handle_at,
        libc::SYS_bpf,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_kexec_load,
        libc::SYS_io_uring_setup,
        libc::SYS_perf_event_open,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_kill,
        libc::SYS_prctl,
        libc::SYS_seccomp,
        libc::SYS_setuid,
        libc::SYS_rt_sigaction,
        libc::SYS_userfaultfd,
        libc::SYS_memfd_create,
        libc::SYS_chdir,
        libc::SYS_fchdir,
    ];
    for role in Role::ALL {
        let names: Vec<_> =
            rules(role).filter(|rule| forbidden.contains(&rule.number())).map(Rule::name).collect();
        assert!(names.is_empty(), "{role}: {names:?}");
    }
}

#[test]
fn only_the_fs_thread_may_open_files() {
    for role in Role::ALL {
        let opens = rules(role).any(|rule| [libc::SYS_openat, libc::SYS_openat2].contains(&rule.number()));
        assert_eq!(opens, role == Role::Fs, "{role}");
    }
}

#[test]
fn every_rule_says_who_makes_the_call_and_stands_once() {
    for role in Role::ALL {
        let any = |rule: &&Rule| rule.conditions.is_empty();
        for rule in rules(role) {
            assert!(!rule.who.is_empty() && rule.name() != "unknown", "{role}: {rule:?}");
            // Only rules about arguments may stand side by side.
            let same = rules(role).filter(|other| other.number() == rule.number());
            let alone = same.clone().filter(any).count() == 0 || same.count() == 1;
            assert!(alone, "{role}: {} stands twice", rule.name());
        }
    }
}
