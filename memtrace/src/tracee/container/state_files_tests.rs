use super::*;

const A: &str = "0195d365d17084416abc649bacb0e1a20c8f66a583bd6b4d1bf7f1c82ea53b42";
/// As Docker 20.10 wrote it, shortened.
const CONFIG_V2: &str = r#"{"StreamConfig":{},"State":{"Running":true,"Paused":false,"Restarting":false,"OOMKilled":false,"RemovalInProgress":false,"Dead":false,"Pid":25247,"ExitCode":0,"Error":"","StartedAt":"2026-11-23T10:55:15.623005725Z","FinishedAt":"0001-01-01T00:00:00Z","Health":null},"ID":"0195d365d17084416abc649bacb0e1a20c8f66a583bd6b4d1bf7f1c82ea53b42","Managed":false,"Path":"/bin/busybox","Args":["sleep","1000"],"Config":{"Hostname":"0195d365d170","Image":"mt:1","Labels":{}},"Image":"sha256:2d0a","Name":"/web","Driver":"overlay2"}"#;
const CONTAINERS_JSON: &str = r#"[{"id":"0195d365d17084416abc649bacb0e1a20c8f66a583bd6b4d1bf7f1c82ea53b42","names":["web"],"image":"c1","layer":"d2","metadata":"{\"image-name\":\"localhost/mt:1\",\"image-id\":\"c1\",\"name\":\"web\",\"created-at\":1}","created":"2026-11-23T10:55:15Z","flags":{"MountLabel":""}},{"id":"short","names":["x"]},{"id":"1195d365d17084416abc649bacb0e1a20c8f66a583bd6b4d1bf7f1c82ea53b42","metadata":"not json"}]"#;
const BUNDLE: &str = r#"{"ociVersion":"1.0.2","process":{},"annotations":{"io.kubernetes.cri.container-name":"app","io.kubernetes.cri.container-type":"container","io.kubernetes.cri.image-name":"docker.io/library/mt:1","io.kubernetes.cri.sandbox-id":"aa","io.kubernetes.cri.sandbox-name":"web-0","io.kubernetes.cri.sandbox-namespace":"shop"}}"#;

#[test]
fn dockers_file_tells_name_image_state_and_pid() {
    let told = parse_docker(A.to_string(), CONFIG_V2).unwrap();
    assert_eq!(told.names, ["web"]);
    assert_eq!(told.image.as_deref(), Some("mt:1"));
    assert_eq!((told.state.as_deref(), told.pid), (Some("running"), Some(25247)));
    let stopped = CONFIG_V2.replace("\"Running\":true", "\"Running\":false").replace("25247", "0");
    let told = parse_docker(A.to_string(), &stopped).unwrap();
    assert_eq!((told.state.as_deref(), told.pid), (Some("not running"), None));
    let paused = CONFIG_V2.replace("\"Paused\":false", "\"Paused\":true");
    assert!(parse_docker(A.to_string(), &paused).unwrap().is_running());
}

#[test]
fn podmans_file_tells_names_and_image() {
    let told = parse_podman(CONTAINERS_JSON);
    assert_eq!(told.len(), 2, "what has no id is no container");
    assert_eq!((told[0].id.as_str(), told[0].names[0].as_str()), (A, "web"));
    assert_eq!(told[0].image.as_deref(), Some("localhost/mt:1"));
    assert_eq!((told[1].names.len(), told[1].image.as_deref()), (0, None));
}

#[test]
fn a_kubernetes_container_has_the_names_of_its_pod_too() {
    let told = parse_bundle("containerd", A.to_string(), Some(7), BUNDLE).unwrap();
    assert_eq!(told.names, ["shop/web-0/app", "web-0/app", "app"]);
    assert_eq!(told.image.as_deref(), Some("docker.io/library/mt:1"));
    let sandbox = BUNDLE.replace("io.kubernetes.cri.container-name", "x");
    let told = parse_bundle("containerd", A.to_string(), Some(7), &sandbox).unwrap();
    assert_eq!(told.names, Vec::<String>::new(), "the sandbox is not the pod's container");
}

#[test]
fn broken_files_tell_nothing() {
    for text in ["", "{}", "null", "[]", "{\"Name\":\"x\"", "\u{0}", &"[".repeat(100_000)] {
        assert_eq!(parse_docker(A.to_string(), text), None);
        assert_eq!(parse_podman(text), []);
        assert_eq!(parse_data_root(text), None);
    }
    assert_eq!(parse_bundle("containerd", A.to_string(), None, "[1]"), None);
}

#[test]
fn dockers_configuration_may_move_its_state() {
    assert_eq!(parse_data_root(r#"{"data-root":"/srv/d","debug":true}"#), Some("/srv/d".into()));
    assert_eq!(parse_data_root(r#"{"data-root":"srv/d"}"#), None);
    assert_eq!(parse_data_root(r#"{"debug":true}"#), None);
}

#[test]
fn all_runtimes_directories_are_read_and_absent_ones_passed_over() {
    let root = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write(&format!("docker/{A}/config.v2.json"), CONFIG_V2);
    write("docker/other/config.v2.json", CONFIG_V2);
    write("storage/containers.json", CONTAINERS_JSON);
    write(&format!("run/{A}/userdata/pidfile"), "5164");
    write(&format!("task/k8s.io/{A}/config.json"), BUNDLE);
    write(&format!("task/k8s.io/{A}/init.pid"), "415\n");
    write("task/moby/x/config.json", BUNDLE);
    let files = StateFiles {
        docker: vec![root.path().join("absent"), root.path().join("docker")],
        podman: vec![
            (root.path().join("absent"), root.path().join("run")),
            (root.path().join("storage/containers.json"), root.path().join("run")),
        ],
        containerd: vec![root.path().join("absent"), root.path().join("task")],
    };
    let told: Vec<_> = files.read().into_iter().map(|it| (it.runtime, it.pid)).collect();
    let expected = [
        ("docker", Some(25247)),
        ("podman", Some(5164)),
        ("podman", None),
        ("containerd", Some(415)),
    ];
    assert_eq!(told, expected.map(|(runtime, pid)| (runtime.to_string(), pid)));
}

#[test]
fn a_users_own_daemons_keep_their_state_in_his_home() {
    let root = tempfile::tempdir().unwrap();
    let (home, run) = (root.path().join("home/me"), root.path().join("run/user/1000"));
    let write = |path: PathBuf, text: &str| {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    let storage = home.join(".local/share/containers/storage/overlay-containers");
    write(storage.join("containers.json"), CONTAINERS_JSON);
    write(run.join(format!("containers/overlay-containers/{A}/userdata/pidfile")), "5164");
    let docker = home.join(".local/share/docker/containers").join(A.replace('0', "1"));
    write(docker.join("config.v2.json"), CONFIG_V2);
    let mut files = StateFiles { docker: Vec::new(), podman: Vec::new(), containerd: Vec::new() };
    files.add_rootless(&home, &run);
    let told = files.read();
    let told: Vec<_> = told.iter().map(|it| (it.runtime.as_str(), it.pid)).collect();
    assert_eq!(told, [("docker", Some(25247)), ("podman", Some(5164)), ("podman", None)]);
}

#[test]
fn what_is_no_regular_file_is_not_waited_for() {
    let root = tempfile::tempdir().unwrap();
    let pipe = root.path().join("containers.json");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(read_bounded(&pipe, 100).is_err());
    assert!(read_bounded(root.path(), 100).is_err());
    let file = root.path().join("file");
    std::fs::write(&file, "0123456789").unwrap();
    assert_eq!(read_bounded(&file, 4).unwrap(), "0123");
}

#[test]
fn crios_sandbox_is_none_of_its_pods_containers() {
    let text = CONTAINERS_JSON.replace("[\"web\"]", "[\"k8s_POD_web-0_shop_u-1_0\"]");
    let told = parse_podman(&text);
    assert!(told[0].is_sandbox && told[0].runtime == "cri-o", "{told:?}");
    assert_eq!(told[0].pod.as_ref().unwrap().to_string(), "shop/web-0");
    let text = CONTAINERS_JSON.replace("[\"web\"]", "[\"k8s_app_web-0_shop_u-1_0\"]");
    let told = parse_podman(&text);
    assert_eq!(told[0].names[..2], ["shop/web-0/app", "web-0/app"]);
}

#[test]
fn a_bundle_tells_a_sandbox_and_its_pod() {
    let sandbox = BUNDLE
        .replace("container-name", "x")
        .replace(r#""container""#, r#""sandbox""#)
        .replace("sandbox-id", "sandbox-uid");
    let told = parse_bundle("containerd", A.to_string(), None, &sandbox).unwrap();
    assert!(told.is_sandbox);
    let pod = told.pod.clone().unwrap();
    assert_eq!((pod.to_string().as_str(), pod.uid.as_deref()), ("shop/web-0", Some("aa")));
    assert!(told.to_string().starts_with("the sandbox of `shop/web-0` (0195"), "{told}");
}
