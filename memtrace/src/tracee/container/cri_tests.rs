use super::*;

const A: &str = "7375090a4b1f3c1a7c0e4f0d4f6d8b9d3d1b7a6e5f4c3b2a1908f7e6d5c4b3a2";
const B: &str = "06cdedde911e3e27546992f6ba02104cabf3eaf1ce9809e8aa02c16c7b390f6b";

fn sandbox(id: &str, name: &str) -> Sandbox {
    let metadata = SandboxMetadata {
        name: name.to_owned(),
        uid: "11111111-2222-3333-4444-555555555555".to_owned(),
        namespace: "shop".to_owned(),
    };
    Sandbox { id: id.to_owned(), metadata: Some(metadata), state: 0 }
}

fn container(id: &str, name: &str, state: i32) -> CriContainer {
    CriContainer {
        id: id.to_owned(),
        sandbox: A.to_owned(),
        metadata: Some(ContainerMetadata { name: name.to_owned() }),
        image: Some(Image { image: "mt:1".to_owned() }),
        state,
    }
}

fn told(sandbox: Sandbox, container: CriContainer) -> Vec<Candidate> {
    let containers = Containers { containers: vec![container] };
    candidates("containerd", Sandboxes { items: vec![sandbox] }, containers)
}

#[test]
fn a_container_has_the_names_of_its_pod_too_and_the_sandbox_is_told_apart() {
    let told = told(sandbox(A, "web-0"), container(B, "app", 1));
    assert!(told[0].is_sandbox && told[0].names.is_empty() && told[0].is_running());
    assert_eq!(told[0].pod.as_ref().unwrap().to_string(), "shop/web-0");
    assert_eq!(told[1].names, ["shop/web-0/app", "web-0/app", "app"]);
    assert_eq!((told[1].image.as_deref(), told[1].is_running()), (Some("mt:1"), true));
    assert!(!told[1].is_sandbox);
    assert!(told[1].pod.as_ref().unwrap().uid.as_ref().unwrap().starts_with("1111"));
}

#[test]
fn hostile_answers_are_nothing_or_fit_for_a_terminal() {
    assert_eq!(told(sandbox("../x", "web"), container("", "app", 1)), []);
    let found = told(sandbox(A, "web\u{1b}[2J"), container(B, "\u{202e}app", 77));
    assert_eq!(found[1].names[0], r"shop/web\u{1b}[2J/\u{202e}app");
    assert_eq!(found[1].state, None);
    // A sandbox that nobody knows, and no metadata at all.
    let mut lone = container(B, "app", 2);
    lone.sandbox = B.to_owned();
    assert_eq!(told(sandbox(A, "web"), lone.clone())[1].names, ["app"]);
    lone.metadata = None;
    assert_eq!(told(Sandbox { metadata: None, ..sandbox(A, "") }, lone)[1].names, [""; 0]);
}

#[test]
fn the_variable_names_one_socket_and_what_is_no_unix_socket_is_given_back() {
    let of = |value: &'static str| conventional(move |_| Some(value.to_owned()));
    for value in ["unix:///srv/c.sock", "/srv/c.sock"] {
        let (sockets, unasked) = of(value);
        assert_eq!((sockets[0].path.to_str(), sockets.len()), (Some("/srv/c.sock"), 1));
        assert_eq!(unasked, None);
    }
    let (sockets, unasked) = of("tcp://10.0.0.1:1234");
    assert!(sockets.is_empty() && unasked.unwrap().1.contains("unix sockets"));
}
