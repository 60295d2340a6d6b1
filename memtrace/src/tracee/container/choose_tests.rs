use super::*;

fn id(start: &str) -> String {
    format!("{start:0<64}")
}

fn container(start: &str, name: &str, state: &str) -> Candidate {
    Candidate {
        id: id(start),
        runtime: "docker".to_string(),
        names: vec![name.to_string()],
        image: None,
        state: Some(state.to_string()),
        ..Candidate::default()
    }
}

fn unnamed(start: &str) -> Candidate {
    Candidate { names: Vec::new(), ..container(start, "", "running") }
}

#[test]
fn an_exact_id_beats_a_name_beats_a_prefix() {
    let known = [
        container("abc1", "first", "running"),
        container("abc2", "abc1", "running"),
        container("def", &id("abc1"), "running"),
    ];
    assert_eq!(choose(&id("abc1"), &known), Choice::One(&known[0]));
    assert_eq!(choose("abc1", &known), Choice::One(&known[1]));
    assert_eq!(choose("abc10", &known), Choice::One(&known[0]));
    assert_eq!(choose("d", &known), Choice::One(&known[2]));
}

#[test]
fn several_with_one_name_or_one_prefix_are_ambiguous() {
    let known = [
        container("abc1", "web", "running"),
        container("abc2", "web", "exited"),
        container("abd", "db", "running"),
    ];
    assert_eq!(choose("web", &known), Choice::Several(vec![&known[0], &known[1]]));
    assert_eq!(choose("ab", &known), Choice::Several(vec![&known[0], &known[1], &known[2]]));
}

#[test]
fn what_matches_nothing_matches_nothing() {
    let known = [container("abc1", "web", "running")];
    for wanted in ["", "we", "WEB", "bc1", "webs", "ABC1"] {
        assert_eq!(choose(wanted, &known), Choice::None, "{wanted}");
    }
    assert_eq!(choose("web", &[]), Choice::None);
}

#[test]
fn a_container_known_by_its_cgroup_alone_needs_four_digits() {
    let known = [unnamed("abcd")];
    assert_eq!(choose("abc", &known), Choice::None);
    assert_eq!(choose("abcd", &known), Choice::One(&known[0]));
}

#[test]
fn what_one_source_left_open_another_fills_in() {
    let mut known = vec![container("a", "web", "exited")];
    let other = Candidate {
        runtime: "cgroup".to_string(),
        image: Some("nginx".to_string()),
        pid: Some(7),
        ..container("a", "other", "running")
    };
    merge(&mut known, vec![other, unnamed("b"), unnamed("b")]);
    assert_eq!(known.len(), 2);
    let first = &known[0];
    assert_eq!((first.runtime.as_str(), first.names[0].as_str()), ("docker", "web"));
    assert_eq!((first.state.as_deref(), first.pid), (Some("exited"), Some(7)));
    assert_eq!(first.image.as_deref(), Some("nginx"));
}

#[test]
fn errors_show_the_most_similar_first_and_say_how_many_more() {
    let mut known: Vec<_> =
        (0..12).map(|n| container(&n.to_string(), &format!("x{n}"), "exited")).collect();
    known.push(container("aa", "api-server", "exited"));
    known.push(container("bb", "running", "running"));
    sort_by_likeness("api-servers", &mut known);
    let text = candidates("; there are", &known);
    assert!(
        text.starts_with(
            "; there are `api-server` (aa0000000000, docker, exited), `running` (bb0000000000, docker, running), `x0`"
        ),
        "{text}"
    );
    assert!(text.ends_with(" and 6 more"), "{text}");
    assert_eq!(candidates("; there are", &[]), "");
}

#[test]
fn a_candidate_becomes_the_recorded_container_with_its_fullest_name() {
    let mut candidate = unnamed("abcd");
    assert_eq!(candidate.to_string(), "`abcd00000000` (docker, running)");
    assert_eq!(Container::from(candidate.clone()).name, None);
    candidate.names = vec!["default/pod/app".to_string(), "app".to_string()];
    assert_eq!(Container::from(candidate).name.as_deref(), Some("default/pod/app"));
}

#[test]
fn a_pods_former_container_does_not_stand_in_the_way_of_the_one_that_runs() {
    let in_pod = |start: &str, state: &str| Candidate {
        pod: Some(PodName { namespace: "shop".into(), name: "web".into(), uid: None }),
        ..container(start, "app", state)
    };
    let known = [in_pod("a", "exited"), in_pod("b", "running"), in_pod("c", "exited")];
    assert_eq!(choose("app", &known), Choice::One(&known[1]));
    let known = [in_pod("a", "exited"), in_pod("c", "exited")];
    assert!(matches!(choose("app", &known), Choice::Several(_)), "none of them runs");
    let known = [in_pod("a", "running"), in_pod("b", "running"), in_pod("c", "exited")];
    assert_eq!(choose("app", &known), Choice::Several(vec![&known[0], &known[1]]));
}
