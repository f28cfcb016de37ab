use super::*;

fn gitops(project: &str, commit_id: &str) -> GitopsReport {
    GitopsReport { project: project.into(), commit_id: commit_id.into(), ..Default::default() }
}

fn configuration(commit_id: &str) -> ConfigurationReport {
    ConfigurationReport { commit_id: commit_id.into(), applied: true, problems: Vec::new() }
}

/// The commit of the next report, with its project.
async fn next(reports: &Reports) -> (String, String) {
    match reports.next().await.1 {
        About::Configuration(report) => (String::new(), report.commit_id),
        About::Gitops(report) => (report.project, report.commit_id),
    }
}

fn pair(project: &str, commit_id: &str) -> (String, String) {
    (project.to_owned(), commit_id.to_owned())
}

#[tokio::test(start_paused = true)]
async fn the_newest_report_of_each_project_is_told_and_what_waited_longest_comes_first() {
    let (reports, _sending) = reports();
    reports.gitops(gitops("b", "1"));
    reports.configuration(configuration("1"));
    reports.gitops(gitops("a", "1"));
    for commit in 2..1000 {
        reports.gitops(gitops("b", &commit.to_string()));
    }
    assert_eq!(next(&reports).await, pair("b", "999"));
    assert_eq!(next(&reports).await, pair("", "1"));
    assert_eq!(next(&reports).await, pair("a", "1"));
}

#[tokio::test(start_paused = true)]
async fn a_project_is_told_of_once_a_second_and_nobody_else_waits_for_it() {
    let (reports, _sending) = reports();
    let began = Instant::now();
    reports.gitops(gitops("a", "1"));
    assert_eq!(next(&reports).await, pair("a", "1"));
    reports.gitops(gitops("a", "2"));
    reports.gitops(gitops("b", "1"));
    assert_eq!(next(&reports).await, pair("b", "1"));
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(next(&reports).await, pair("a", "2"));
    assert_eq!(began.elapsed(), EVERY);
}

#[tokio::test(start_paused = true)]
async fn the_same_is_not_told_twice_but_to_another_broker() {
    let (reports, _sending) = reports();
    let none = async |reports: &Reports| timeout(EVERY * 10, reports.next()).await.is_err();
    reports.gitops(gitops("a", "1"));
    next(&reports).await;
    reports.gitops(gitops("a", "1"));
    assert!(none(&reports).await);
    reports.all_again();
    assert_eq!(next(&reports).await, pair("a", "1"));
    reports.forget("a");
    reports.all_again();
    assert!(none(&reports).await);
}

#[tokio::test(start_paused = true)]
async fn what_did_not_arrive_is_told_again_in_its_newest_form() {
    let (reports, _sending) = reports();
    reports.gitops(gitops("a", "1"));
    let (key, _) = reports.next().await;
    reports.put_back(&key);
    reports.gitops(gitops("a", "2"));
    assert_eq!(next(&reports).await, pair("a", "2"));
}

#[tokio::test(start_paused = true)]
async fn projects_are_bounded_and_what_the_broker_knows_makes_room() {
    let (reports, _sending) = reports();
    reports.configuration(configuration("1"));
    reports.gitops(gitops("known", "1"));
    next(&reports).await;
    next(&reports).await;
    for project in 0..PROJECTS + 10 {
        reports.gitops(gitops(&project.to_string(), "1"));
    }
    let told = reports.told();
    assert_eq!(told.entries.len(), PROJECTS + 1);
    assert!(told.entries.contains_key(&Key::Configuration));
    assert!(!told.entries.contains_key(&Key::Gitops("known".to_owned())));
}

#[test]
fn reports_are_bounded_in_every_direction() {
    let (reports, _sending) = reports();
    let problem = |text: String| Problem { text, ..Problem::default() };
    let long = "é".repeat(TEXT);
    let problems: Vec<_> = (0..60).map(|_| problem(format!("{long}\n"))).collect();
    let object =
        postern_wire::proto::postern::agent::ObjectReport { text: "a\nb".into(), ..Default::default() };
    let results = vec![object; 200];
    reports.gitops(GitopsReport { problems, results, ..gitops("a", "1") });
    let told = reports.told();
    let About::Gitops(report) = &told.entries.values().next().unwrap().about else {
        panic!("another report")
    };
    assert_eq!((report.problems.len(), report.results.len()), (PROBLEMS, RESULTS));
    assert_eq!(report.problems[49].text, "and 11 more");
    assert!(report.problems[0].text.len() <= TEXT && report.problems[0].text.ends_with('…'));
    assert_eq!(report.results[0].text, "a b");
}
