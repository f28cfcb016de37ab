//! What a dial shows and trusts: the passwords and TLS files that the configuration names, read again for each dial, so
//! that a rotated password or certificate needs no restart. Before it: the dialler. It dials nothing and logs nothing.

use super::{Config, RedisError, Servers, Tls};
use ::redis::{ProtocolVersion, RedisConnectionInfo};
use postern_certs::client::{ClientIdentity, ClientTrust};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Where credentials are.
pub(super) struct Files {
    username: Option<String>,
    password: Option<PathBuf>,
    sentinel_password: Option<PathBuf>,
    tls: Option<Tls>,
    database: i64,
}

/// As they are right now. No `Debug`, for it holds passwords.
pub(super) struct Credentials {
    pub(super) login: RedisConnectionInfo,
    pub(super) sentinel_login: RedisConnectionInfo,
    pub(super) secure: Option<Secure>,
}

pub(super) struct Secure {
    pub(super) trust: Arc<ClientTrust>,
    pub(super) identity: Option<ClientIdentity>,
}

impl Files {
    pub(super) fn new(config: &Config) -> Self {
        let sentinel_password = match &config.servers {
            Servers::Sentinel { password_file, .. } => password_file.clone(),
            _ => None,
        };
        Self {
            username: config.username.clone(),
            password: config.password_file.clone(),
            sentinel_password,
            tls: config.tls.clone(),
            database: config.database,
        }
    }

    /// Blocks.
    pub(super) fn read(&self) -> Result<Credentials, RedisError> {
        let files = |error| RedisError::Files(Arc::new(error));
        let secure = match &self.tls {
            None => None,
            Some(tls) => {
                let trust = ClientTrust::load(tls.ca_certificate_file.clone()).map_err(files)?;
                let identity =
                    tls.certificate.as_ref().map(ClientIdentity::load).transpose().map_err(files)?;
                Some(Secure { trust, identity })
            }
        };
        let sentinel_login = login(None, self.sentinel_password.as_deref())?;
        let login = login(self.username.as_deref(), self.password.as_deref())?.set_db(self.database);
        Ok(Credentials { login, sentinel_login, secure })
    }
}

fn login(username: Option<&str>, password_file: Option<&Path>) -> Result<RedisConnectionInfo, RedisError> {
    // The older protocol, which all servers know; nothing here needs the newer one.
    let login = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP2).set_skip_set_lib_name();
    let Some(path) = password_file else { return Ok(login) };
    let unreadable = |source| RedisError::PasswordFile { path: path.to_owned(), source: Arc::new(source) };
    let bad = |what| RedisError::BadPassword { path: path.to_owned(), what };
    let content = fs::read(path).map_err(unreadable)?;
    let content = std::str::from_utf8(&content).map_err(|_| bad("is not UTF-8; is it the right file?"))?;
    let password = content.strip_suffix('\n').unwrap_or(content);
    let password = password.strip_suffix('\r').filter(|_| content.ends_with('\n')).unwrap_or(password);
    if password.is_empty() {
        return Err(bad("is empty; where Redis wants no password, leave password_file out"));
    }
    let login = login.set_password(password);
    Ok(match username {
        Some(username) if !username.is_empty() => login.set_username(username),
        _ => login,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_loses_one_newline_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        for (content, wanted) in [
            ("abc", Some("abc")),
            ("abc\n", Some("abc")),
            ("abc\r\n", Some("abc")),
            ("abc\r", Some("abc\r")),
            (" a b\n\n", Some(" a b\n")),
            ("\n", None),
            ("", None),
        ] {
            fs::write(&path, content).unwrap();
            let login = login(None, Some(&path));
            assert_eq!(login.ok().and_then(|login| login.password().map(str::to_owned)).as_deref(), wanted);
        }
    }
}
