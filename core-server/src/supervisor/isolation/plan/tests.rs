//! What is asked for against what there is.

use proptest::prelude::*;

use super::*;

fn offers() -> Offers {
    Offers {
        other_users: true,
        own_user: 0,
        controllers: Controllers {
            memory: true,
            pids: true,
            cpu: true,
        },
        sampling: true,
        open_files: 1000,
        landlock: Enforced::Full,
    }
}

/// No cgroup, no root, an old kernel: a container of yesterday.
fn little() -> Offers {
    Offers {
        other_users: false,
        own_user: 7,
        controllers: Controllers::default(),
        landlock: Enforced::None,
        ..offers()
    }
}

fn limits(required: &[Resource]) -> ResourceLimits {
    ResourceLimits {
        memory: Some(64 << 20),
        pids: Some(20),
        cpu_weight: Some(50),
        open_files: Some(100),
        required: required.to_vec(),
    }
}

fn lamp() -> Account {
    Account {
        uid: 990,
        gid: 980,
        label: "lamp (990:980)".to_owned(),
    }
}

fn modes(plan: &Plan) -> Vec<&'static str> {
    let limits = plan.shown.limits.iter();
    limits.map(|(.., mode)| mode.as_str()).collect()
}

#[test]
fn cgroups_keep_what_they_can_and_nothing_is_noted() {
    let all = plan(
        &limits(&Resource::ALL),
        &Sandbox::default(),
        None,
        &offers(),
    );
    let all = all.expect("everything is there");
    assert_eq!(modes(&all), ["cgroup", "cgroup", "cgroup", "rlimit"]);
    let cgroup = CgroupLimits {
        memory: Some(64 << 20),
        pids: Some(20),
        cpu_weight: Some(50),
    };
    assert_eq!(all.cgroup, Some(cgroup));
    assert_eq!(all.sampled, Bounds::default());
    assert_eq!((all.open_files, all.processes), (Some(100), None));
    assert_eq!(all.shown.notes, Vec::<String>::new());
}

#[test]
fn without_cgroups_the_core_looks_itself_and_says_so() {
    let plan = plan(&limits(&[]), &Sandbox::default(), None, &little()).expect("with less");
    assert_eq!(modes(&plan), ["sampled", "sampled", "missing", "rlimit"]);
    assert_eq!(plan.cgroup, None);
    let sampled = Bounds {
        memory: Some(64 << 20),
        pids: Some(20),
    };
    assert_eq!(plan.sampled, sampled);
    assert_eq!(plan.shown.notes.len(), 3, "{:?}", plan.shown.notes);
    assert!(plan.shown.notes[0].contains("limits.memory"));
}

#[test]
fn the_processes_of_a_user_of_its_own_are_counted_by_the_kernel() {
    let mut root = little();
    root.other_users = true;
    root.own_user = 0;
    let plan_for = |account: Account| {
        let limits = limits(&[Resource::Pids]);
        plan(&limits, &Sandbox::default(), Some(account), &root)
    };
    let plan = plan_for(lamp()).expect("the kernel keeps it");
    assert_eq!(plan.processes, Some(20));
    assert_eq!(modes(&plan)[1], "rlimit");
    let root = Account { uid: 0, ..lamp() };
    plan_for(root).expect_err("the kernel exempts root");
}

#[test]
fn nothing_asked_for_is_nothing_done() {
    let (limits, sandbox) = (ResourceLimits::default(), Sandbox::default());
    let nothing = plan(&limits, &sandbox, None, &little()).expect("nothing is asked for");
    assert_eq!(modes(&nothing), ["unlimited"; 4]);
    assert_eq!(nothing.shown.landlock, Enforced::None);
    assert_eq!(nothing.shown.user, "core");
    assert_eq!(nothing.shown.notes, Vec::<String>::new());
    assert_eq!(nothing.landlock, None);
}

#[test]
fn what_is_required_and_not_to_be_had_is_refused_by_name() {
    for resource in [Resource::Memory, Resource::Pids, Resource::CpuWeight] {
        let refused = plan(&limits(&[resource]), &Sandbox::default(), None, &little());
        let refused = refused.expect_err("not in full").to_string();
        let name = format!("limits.{}: required, but", resource.as_str());
        assert!(refused.starts_with(&name), "{refused}");
    }
    let mut many = limits(&[Resource::OpenFiles]);
    many.open_files = Some(5000);
    let refused = plan(&many, &Sandbox::default(), None, &offers());
    let refused = refused.expect_err("more than the core has").to_string();
    assert!(
        refused.contains("limits.open_files") && refused.contains("1000"),
        "{refused}"
    );
    many.required.clear();
    let fewer = plan(&many, &Sandbox::default(), None, &offers()).expect("with fewer");
    assert_eq!(fewer.open_files, Some(1000));
}

#[test]
fn a_required_sandbox_is_whole_or_the_plugin_does_not_start() {
    let files = |required| Sandbox {
        landlock: true,
        required,
        ..Sandbox::default()
    };
    let with = |landlock, required| {
        let offers = Offers {
            landlock,
            ..offers()
        };
        plan(&ResourceLimits::default(), &files(required), None, &offers)
    };
    for required in [false, true] {
        let full = with(Enforced::Full, required).expect("all of it");
        assert_eq!(full.shown.landlock, Enforced::Full);
        assert!(full.landlock.is_some() && full.shown.notes.is_empty());
    }
    for (there, has_rules) in [(Enforced::Partial, true), (Enforced::None, false)] {
        let less = with(there, false).expect("with less");
        assert_eq!(less.shown.landlock, there);
        assert_eq!(less.landlock.is_some(), has_rules);
        assert_eq!(less.shown.notes.len(), 1);
        let refused = with(there, true).expect_err("required").to_string();
        assert!(
            refused.starts_with("sandbox.landlock: required"),
            "{refused}"
        );
    }
}

#[test]
fn another_user_needs_root() {
    let sandbox = |required| Sandbox {
        user: Some("lamp".to_owned()),
        required,
        ..Sandbox::default()
    };
    let none = ResourceLimits::default();
    let root = plan(&none, &sandbox(true), Some(lamp()), &offers()).expect("as root");
    assert_eq!(root.account, Some(lamp()));
    assert_eq!(root.shown.user, "lamp (990:980)");
    let other = plan(&none, &sandbox(false), Some(lamp()), &little()).expect("with less");
    assert_eq!((other.account, other.shown.user.as_str()), (None, "core"));
    assert!(
        other.shown.notes[0].contains("only root"),
        "{:?}",
        other.shown.notes
    );
    let refused = plan(&none, &sandbox(true), Some(lamp()), &little()).expect_err("required");
    assert!(
        refused.to_string().starts_with("sandbox.user: required"),
        "{refused}"
    );
    // The core runs as that user anyway.
    let own = Account { uid: 7, ..lamp() };
    let same = plan(&none, &sandbox(true), Some(own), &little()).expect("nothing to change");
    assert_eq!((same.account, same.shown.notes.len()), (None, 0));
}

proptest! {
    /// A plan keeps everything that is asked for or says what it does not; required means kept.
    #[test]
    fn nothing_is_left_out_in_silence(
        memory in proptest::option::of(1_u64..1000),
        pids in proptest::option::of(1_u64..1000),
        cpu_weight in proptest::option::of(1_u64..1000),
        open_files in proptest::option::of(1_u64..2000),
        required in proptest::sample::subsequence(Resource::ALL.to_vec(), 0..=4),
        (has_memory, has_pids, has_cpu, sampling, other_users) in any::<(bool, bool, bool, bool, bool)>(),
        with_account in any::<bool>(),
    ) {
        let offers = Offers {
            controllers: Controllers { memory: has_memory, pids: has_pids, cpu: has_cpu },
            sampling,
            other_users,
            ..offers()
        };
        let limits = ResourceLimits { memory, pids, cpu_weight, open_files, required };
        let account = with_account.then(lamp);
        let Ok(plan) = plan(&limits, &Sandbox::default(), account, &offers) else {
            prop_assert!(!limits.required.is_empty());
            return Ok(());
        };
        for (resource, value, mode) in &plan.shown.limits {
            prop_assert_eq!(*value, limits.get(*resource).unwrap_or(0));
            prop_assert_eq!(*mode == Mode::Unlimited, limits.get(*resource).is_none());
            if limits.required.contains(resource) && limits.get(*resource).is_some() {
                prop_assert!(mode.is_full());
            }
            if matches!(mode, Mode::Missing | Mode::Sampled) {
                let named = format!("limits.{}:", resource.as_str());
                prop_assert!(plan.shown.notes.iter().any(|note| note.starts_with(&named)));
            }
        }
        let cgroup = plan.cgroup.unwrap_or_default();
        let kept = [
            (memory, cgroup.memory.or(plan.sampled.memory)),
            (pids, cgroup.pids.or(plan.sampled.pids).or(plan.processes)),
        ];
        for (asked, kept) in kept {
            prop_assert!(kept.is_none() || kept == asked);
            prop_assert!(!sampling || kept == asked);
        }
    }
}
