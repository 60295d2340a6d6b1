use std::path::Path;

use super::*;
use crate::tracee::container::{PodName, StateFiles};

const ID: &str = "06cdedde911e3e27546992f6ba02104cabf3eaf1ce9809e8aa02c16c7b390f6b";
const PAUSE: &str = "7375090a4b1f3c1a7c0e4f0d4f6d8b9d3d1b7a6e5f4c3b2a1908f7e6d5c4b3a2";
const UID: &str = "11111111-2222-3333-4444-555555555555";
const STATIC: &str = "db2eeb7a73034a710a6a7f3b931698d5";

#[test]
fn both_drivers_name_the_pod_in_every_class() {
    let under = UID.replace('-', "_");
    let table = [
        (format!("/kubepods/burstable/pod{UID}"), UID),
        (format!("/kubepods/besteffort/pod{UID}"), UID),
        (format!("/kubepods/pod{UID}"), UID),
        (format!("/kubepods/burstable/pod{STATIC}"), STATIC),
        (format!("/kubepods/pod{STATIC}"), STATIC),
        (
            format!("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{under}.slice"),
            UID,
        ),
        (
            format!(
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{STATIC}.slice"
            ),
            STATIC,
        ),
        (format!("/kubepods.slice/kubepods-pod{under}.slice"), UID),
        (format!("/kubepods.slice/kubepods-pod{STATIC}.slice"), STATIC),
        // kind, and a kubelet with a root of its own.
        (format!("/kubelet/kubepods/burstable/pod{UID}"), UID),
        (format!("/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{under}.slice"), UID),
    ];
    for (path, uid) in table {
        for below in
            [ID.to_owned(), format!("cri-containerd-{ID}.scope"), format!("crio-{ID}.scope/x")]
        {
            let whole = format!("{path}/{below}");
            assert_eq!(pod_in(&whole), Some((uid.to_owned(), path.as_str())), "{whole}");
        }
    }
}

#[test]
fn what_only_looks_like_a_pod_is_none() {
    for path in ["/docker/x", "/podman", "/pods/podcast", "/kubepods/burstable", "/", ""] {
        assert_eq!(pod_in(path), None, "{path}");
    }
    // podman's own pods are not Kubernetes'.
    assert_eq!(
        pod_in(&format!("/machine.slice/machine-libpod_pod_{ID}.slice/libpod-{ID}.scope")),
        None
    );
}

fn pod(uid: &str, name: &str) -> PodTarget {
    let name = Some(name.to_owned());
    PodTarget { name, pids: vec![1], ..PodTarget::new(uid.to_owned()) }
}

fn chosen(asked: &str, pods: Vec<PodTarget>) -> Result<PodTarget, PodError> {
    choose_pod(asked, pods, &[])
}

#[test]
fn a_pod_is_found_by_uid_name_or_the_beginning_of_its_uid() {
    let pods = || {
        vec![
            pod(STATIC, "default/web"),
            pod(UID, "shop/db"),
            pod("99999999-2222-3333-4444-555555555555", "test/db"),
        ]
    };
    for asked in ["db2e", "web", "default/web", "poddb2eeb7a73034a710a6a7f3b931698d5"] {
        assert_eq!(chosen(asked, pods()).unwrap().name.as_deref(), Some("default/web"));
    }
    for asked in ["11111111222233334444555555555555", "11111111-2222", "11111111_2222", "shop/db"] {
        assert_eq!(chosen(asked, pods()).unwrap().name.as_deref(), Some("shop/db"), "{asked}");
    }
    let several = chosen("db", pods()).unwrap_err();
    assert!(matches!(several, PodError::Ambiguous { .. }));
    for candidate in ["`shop/db` (1111", "`test/db` (9999"] {
        assert!(several.to_string().contains(candidate), "{several}");
    }
    let missing = chosen("cache\u{1b}[2J", pods()).unwrap_err().to_string();
    assert!(missing.contains("shop/db") && !missing.contains('\u{1b}'), "{missing}");
}

#[test]
fn a_pod_that_the_runtime_only_remembers_does_not_hide_the_one_that_runs() {
    let former = PodTarget { pids: Vec::new(), ..pod(STATIC, "shop/db") };
    let found = chosen("db", vec![former.clone(), pod(UID, "shop/db")]).unwrap();
    assert_eq!(found.uid, UID);
    let error = chosen("db", vec![former]).unwrap_err();
    assert!(matches!(error, PodError::NoCgroup { .. }), "{error}");
}

/// A machine of files with one pod: a sandbox (pid 10), a container (pids 20, 21), and docker's 30.
fn machine(root: &Path, bundles: bool) -> Sources {
    let write = |path: String, text: &str| {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    let slice = format!("/kubepods.slice/kubepods-pod{}.slice", UID.replace('-', "_"));
    for (pid, path) in [
        (10, format!("{slice}/cri-containerd-{PAUSE}.scope")),
        (20, format!("{slice}/cri-containerd-{ID}.scope")),
        (21, format!("{slice}/cri-containerd-{ID}.scope/docker/{PAUSE}")),
        (30, format!("/docker/{}", ID.replace('0', "1"))),
    ] {
        write(format!("proc/{pid}/cgroup"), &format!("0::{path}\n"));
        write(format!("proc/{pid}/status"), &format!("NSpid:\t{pid}\t{pid}\n"));
        write(format!("proc/{pid}/stat"), &format!("{pid} (a) S {}{pid} 0\n", "0 ".repeat(18)));
    }
    if bundles {
        let of_pod = format!(
            r#""io.kubernetes.cri.sandbox-name":"web-0","io.kubernetes.cri.sandbox-namespace":"shop","io.kubernetes.cri.sandbox-uid":"{UID}""#
        );
        for (id, more) in [
            (PAUSE, r#""io.kubernetes.cri.container-type":"sandbox""#),
            (ID, r#""io.kubernetes.cri.container-name":"app""#),
        ] {
            let text = format!(r#"{{"annotations":{{{of_pod},{more}}}}}"#);
            write(format!("tasks/k8s.io/{id}/config.json"), &text);
        }
    }
    Sources {
        engines: Vec::new(),
        cri: Vec::new(),
        unasked: Vec::new(),
        state_files: StateFiles {
            docker: Vec::new(),
            podman: Vec::new(),
            containerd: vec![root.join("tasks")],
        },
        proc: root.join("proc"),
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[test]
fn a_pods_processes_are_those_of_all_of_its_containers_its_sandbox_last() {
    let root = tempfile::tempdir().unwrap();
    let sources = machine(root.path(), true);
    for asked in ["web-0", "shop/web-0", UID, "1111"] {
        let found = block_on(sources.find_pod(asked)).unwrap();
        assert_eq!(found.pids, [20, 21, 10], "{asked}");
        assert_eq!((found.uid.as_str(), found.name.as_deref()), (UID, Some("shop/web-0")));
        assert!(found.cgroup_path.ends_with("_555555555555.slice"), "{}", found.cgroup_path);
    }
}

#[test]
fn a_container_of_a_pod_is_found_by_its_name_there() {
    let root = tempfile::tempdir().unwrap();
    let sources = machine(root.path(), true);
    for asked in ["app", "web-0/app", &ID[..6]] {
        let found = block_on(sources.find_container_in("web-0", asked)).unwrap();
        assert_eq!((found.first_pid, found.container.id.as_str()), (20, ID), "{asked}");
        assert_eq!(found.container.name.as_deref(), Some("shop/web-0/app"));
    }
    let error = block_on(sources.find_container_in("web-0", "ap\u{7}")).unwrap_err().to_string();
    assert!(error.contains("no container of pod `shop/web-0`"), "{error}");
    assert!(error.contains("`shop/web-0/app`") && !error.contains('\u{7}'), "{error}");
    assert!(!error.contains("docker"), "another's container is no candidate: {error}");
}

#[test]
fn without_names_a_pod_is_found_by_its_uid_from_the_cgroups_alone() {
    let root = tempfile::tempdir().unwrap();
    let sources = machine(root.path(), false);
    let found = block_on(sources.find_pod(&UID[..8])).unwrap();
    assert_eq!((found.pids, found.name), (vec![10, 20, 21], None));
    let found = block_on(sources.find_container_in(UID, &ID[..6])).unwrap();
    assert_eq!((found.first_pid, found.container.runtime.as_str()), (20, "containerd"));
    let error = block_on(sources.find_pod("web-0")).unwrap_err();
    assert!(matches!(error, ContainerError::Pod(PodError::NotFound { .. })), "{error}");
    assert!(error.to_string().contains(UID), "{error}");
}

#[test]
fn a_name_that_crio_or_cri_dockerd_gave_tells_the_pod() {
    let (container, pod) = choose::parse_kubelet_name("k8s_app_web-0_shop_u-1_3").unwrap();
    assert_eq!((container, pod.to_string().as_str()), (Some("app"), "shop/web-0"));
    assert_eq!(pod.uid.as_deref(), Some("u-1"));
    let (container, _) = choose::parse_kubelet_name("k8s_POD_web-0_shop_u-1_0").unwrap();
    assert_eq!(container, None);
    for name in ["", "k8s_", "k8s_app_web", "app", "k8s_a_b_c_d_e_f"] {
        assert_eq!(choose::parse_kubelet_name(name), None, "{name}");
    }
    let named =
        Candidate { names: vec!["k8s_app_web-0_shop_u-1_3".to_owned()], ..Candidate::default() };
    let named = named.with_kubelet_name();
    assert_eq!(named.names[..3], ["shop/web-0/app", "web-0/app", "app"]);
    assert_eq!(
        named.pod,
        Some(PodName { namespace: "shop".into(), name: "web-0".into(), uid: Some("u-1".into()) })
    );
}
