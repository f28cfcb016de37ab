//! `agents`: who is connected to the fleet, as a table or as the broker's JSON. One question to the API listener of any
//! broker, which asks the others itself; signed with the secret that GitLab Rails and the brokers share. It changes
//! nothing and needs neither GitLab nor Redis.

mod client;
mod jwt;
mod table;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context as _, bail};
use http::StatusCode;
use serde_json::Value;

use self::client::{Answer, Broker};
use self::jwt::Secret;

/// What to list.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The API listener of any broker: http://HOST:8153, or https:// where it has a certificate
    #[arg(long, value_name = "URL")]
    api: String,
    /// The file that api.listen.authentication_secret_file of the broker names, or a copy
    #[arg(long, value_name = "FILE")]
    secret_file: PathBuf,
    /// Only this agent; more than once for several. What is known of one that is gone is said; the exit code is 1 then
    #[arg(long = "agent", value_name = "ID")]
    agents: Vec<i64>,
    /// Only agents configured in this project; more than once for several
    #[arg(long = "project", value_name = "ID")]
    projects: Vec<i64>,
    /// Print the broker's answer as it is, in JSON
    #[arg(long)]
    json: bool,
    /// CA certificates, in PEM, to be trusted besides the system's
    #[arg(long, value_name = "FILE")]
    ca_cert_file: Option<PathBuf>,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let broker = Broker::parse(&options.api)?;
    let secret = Secret::read(&options.secret_file)?;
    let jwt = secret.jwt(SystemTime::now());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("start the I/O of this process")?;
    let path = path(&options.agents, &options.projects);
    let answer = runtime.block_on(broker.get(&path, &jwt, options.ca_cert_file.clone()));
    // A name server that is silent keeps its thread.
    runtime.shutdown_background();
    let answer = answer?;
    let document = understood(&answer)?;
    if options.json {
        print!("{}", String::from_utf8_lossy(&answer.body));
    } else {
        print!("{}", table::table(&document));
    }
    eprint!("{}", table::remarks(&document));
    let gone = document["gone"].as_array().is_some_and(|gone| !gone.is_empty());
    Ok(if gone { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn path(agents: &[i64], projects: &[i64]) -> String {
    let mut path = "/api/v1/agents".to_owned();
    let agent_ids = agents.iter().map(|id| ("agent_id", id.to_string()));
    let project_ids = projects.iter().map(|id| ("project_id", id.to_string()));
    let gone = (!agents.is_empty()).then(|| ("gone", "true".to_owned()));
    for (number, (key, value)) in agent_ids.chain(project_ids).chain(gone).enumerate() {
        let before = if number == 0 { '?' } else { '&' };
        let _ = write!(path, "{before}{key}={value}");
    }
    path
}

/// The list, or what to do about it that there is none.
fn understood(answer: &Answer) -> anyhow::Result<Value> {
    let said = table::plain(String::from_utf8_lossy(&answer.body).trim());
    match answer.status {
        StatusCode::OK if answer.is_json => {
            serde_json::from_slice(&answer.body).context("the broker's answer is no JSON")
        }
        StatusCode::UNAUTHORIZED => bail!(
            "the broker refuses what is signed with --secret-file ({said}); it must hold what the file that \
             api.listen.authentication_secret_file of the broker names holds, and the two clocks must agree"
        ),
        StatusCode::BAD_REQUEST | StatusCode::SERVICE_UNAVAILABLE => bail!("the broker says: {said}"),
        // gRPC has nothing at this path, or nothing but gRPC is served.
        StatusCode::OK | StatusCode::NOT_FOUND | StatusCode::HTTP_VERSION_NOT_SUPPORTED => bail!(
            "there is no list of agents there; --api must be the API listener (api.listen, mostly port 8153) of a broker \
             of this version"
        ),
        status => bail!("the broker answers {status}: {said}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_names_agents_and_projects() {
        assert_eq!(path(&[], &[]), "/api/v1/agents");
        assert_eq!(path(&[], &[3]), "/api/v1/agents?project_id=3");
        assert_eq!(path(&[7, 8], &[3]), "/api/v1/agents?agent_id=7&agent_id=8&project_id=3&gone=true");
    }

    #[test]
    fn an_answer_that_is_no_list_says_what_to_do() {
        let answer = |status, is_json, body: &'static str| Answer { status, is_json, body: body.into() };
        for (answer, words) in [
            (answer(StatusCode::UNAUTHORIZED, false, "JWT validation failed\n"), "(JWT validation failed)"),
            (answer(StatusCode::OK, false, ""), "api.listen"),
            (answer(StatusCode::HTTP_VERSION_NOT_SUPPORTED, false, "only gRPC"), "api.listen"),
            (answer(StatusCode::SERVICE_UNAVAILABLE, false, "too many\n"), "the broker says: too many"),
            (answer(StatusCode::BAD_GATEWAY, false, "\x1b[2J"), "502 Bad Gateway: ?[2J"),
            (answer(StatusCode::OK, true, "{"), "no JSON"),
        ] {
            let error = format!("{:#}", understood(&answer).unwrap_err());
            assert!(error.contains(words), "{error}");
        }
        assert!(understood(&answer(StatusCode::OK, true, "{}\n")).is_ok());
    }
}
