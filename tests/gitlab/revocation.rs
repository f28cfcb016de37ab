//! Tokens that GitLab no longer takes: how soon those who hold one are cut off, and that nobody else is.

use super::{Running, ci, idle_tunnels, status_of};
use crate::harness::{
    AGENT, Options,
    gitlab::{GitLabField, Setup},
    http::{get, status},
    within,
};
use std::time::Duration;
use tokio::time::Instant;

/// The periods below are shorter than the broker's shortest, which is five seconds; the usual ones are minutes.
const BOUND: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_revoked_agent_is_cut_off_within_the_bound_with_all_that_runs_through_it() {
    let mut field = GitLabField::with(Setup {
        info_cache_ttl: "2s",
        field: Options { agent_wait: "1s", ..Options::default() },
        ..Setup::default()
    })
    .await;
    idle_tunnels(&field, |count| count > 0).await;
    let mut watch = Running::open(&field, &field.bearer()).await;
    let start = Instant::now();
    field.rails().revoke(&field.tokens.agent);
    watch.ends(BOUND).await;
    println!("a revoked agent's watch ended after {:?}", start.elapsed());
    idle_tunnels(&field, |count| count == 0).await;
    let refused = within(BOUND, "the agent hears of it", async || {
        let lines = field.field.agent.lines();
        lines
            .into_iter()
            .find(|line| line["message"].as_str().is_some_and(|text| text.starts_with("token refused by ")))
    })
    .await;
    assert!(refused["error"].as_str().unwrap().contains("unauthenticated"), "{refused}");
    println!("everything was cut off after {:?}", start.elapsed());
    assert!(start.elapsed() < BOUND, "{:?}", start.elapsed());
    let answer = get(&field, "/version", &[("authorization", &field.bearer())]).await;
    let message = status(answer, 503, "ServiceUnavailable").await;
    assert!(message.contains(&format!("agent {AGENT}")), "{message}");
    assert!(field.agent.alive() && field.broker.alive());
    // Not even a new connection is let in again.
    field.replace_agent(|options| options.ready = false).await;
    let new = within(BOUND, "the new agent hears of it", async || {
        field.field.agent.text().contains("token refused by ").then_some(())
    });
    new.await;
    idle_tunnels(&field, |count| count == 0).await;
}

#[tokio::test]
async fn a_job_that_is_over_or_a_revoked_user_loses_the_watch_within_the_bound_and_nobody_else_does() {
    let field = GitLabField::with(Setup { allowed_agent_cache_ttl: "2s", ..Setup::default() }).await;
    let (over, going) = (ci(&field.tokens.spare_jobs[0]), ci(&field.tokens.spare_jobs[1]));
    let pat = format!("Bearer pat:{AGENT}:{}", field.tokens.pat);
    let mut watch = Running::open(&field, &over).await;
    let mut others = [Running::open(&field, &going).await, Running::open(&field, &pat).await];
    let start = Instant::now();
    field.rails().revoke(&field.tokens.spare_jobs[0]);
    watch.ends(BOUND).await;
    println!("the watch of a job that is over ended after {:?}", start.elapsed());
    let answer = get(&field, "/version", &[("authorization", &over)]).await;
    status(answer, 401, "Unauthorized").await;
    within(BOUND, "the cluster hears of it", async || {
        (field.api().open_of("stream-forever") == 2).then_some(())
    })
    .await;
    for other in &mut others {
        other.goes_on().await;
    }
    let start = Instant::now();
    field.rails().revoke(&field.tokens.pat);
    let [job, user] = &mut others;
    user.ends(BOUND).await;
    println!("the watch of a revoked user ended after {:?}", start.elapsed());
    status(get(&field, "/version", &[("authorization", &pat)]).await, 401, "Unauthorized").await;
    job.goes_on().await;
    assert_eq!(status_of(&field, &going).await, 200);
}
