//! The calls themselves: what git prints, in Gitaly's messages, with the status codes that Gitaly has for what is not
//! there.

use std::ffi::OsStr;
use std::pin::Pin;

use bytes::Bytes;
use futures::{Stream, stream};
use postern_wire::proto::gitaly::commit_service_server::CommitService;
use postern_wire::proto::gitaly::smart_http_service_server::SmartHttpService;
use postern_wire::proto::gitaly::tree_entry::EntryType;
use postern_wire::proto::gitaly::tree_entry_response::ObjectType;
use postern_wire::proto::gitaly::{
    FindCommitRequest, FindCommitResponse, GetTreeEntriesRequest, GetTreeEntriesResponse, GitCommit,
    InfoRefsRequest, InfoRefsResponse, TreeEntry, TreeEntryRequest, TreeEntryResponse,
};
use tonic::{Request, Response, Status};

use super::{Generation, Rpc, State};

/// What Gitaly cuts files into.
const CHUNK: usize = 128 << 10;
/// Odd, so that lines span messages.
const REFS_CHUNK: usize = 1_021;
const ENTRIES: usize = 100;

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn messages<T: Send + 'static>(
    all: impl Iterator<Item = T> + Send + 'static,
) -> Result<Response<Messages<T>>, Status> {
    Ok(Response::new(Box::pin(stream::iter(all.map(Ok)))))
}

#[tonic::async_trait]
impl SmartHttpService for State {
    type InfoRefsUploadPackStream = Messages<InfoRefsResponse>;

    async fn info_refs_upload_pack(
        &self,
        request: Request<InfoRefsRequest>,
    ) -> Result<Response<Self::InfoRefsUploadPackStream>, Status> {
        let request = self.admit(Rpc::InfoRefsUploadPack, request).await?;
        let git_dir = self.git_dir(request.repository.as_ref())?;
        let flags = ["upload-pack", "--stateless-rpc", "--advertise-refs"].map(OsStr::new);
        // upload-pack wants the folder as its own argument.
        let arguments: Vec<&OsStr> = flags.into_iter().chain([git_dir.as_os_str()]).collect();
        let references = self.git(&git_dir, &arguments).await?;
        let references = references.ok_or_else(|| Status::internal("git upload-pack failed"))?;
        let mut data = b"001e# service=git-upload-pack\n0000".to_vec();
        data.extend_from_slice(&references);
        let data = Bytes::from(data);
        let chunks = (0..data.len()).step_by(REFS_CHUNK);
        messages(
            chunks.map(move |from| InfoRefsResponse {
                data: data.slice(from..data.len().min(from + REFS_CHUNK)),
            }),
        )
    }
}

#[tonic::async_trait]
impl CommitService for State {
    type TreeEntryStream = Messages<TreeEntryResponse>;
    type GetTreeEntriesStream = Messages<GetTreeEntriesResponse>;

    async fn find_commit(
        &self,
        request: Request<FindCommitRequest>,
    ) -> Result<Response<FindCommitResponse>, Status> {
        let request = self.admit(Rpc::FindCommit, request).await?;
        let git_dir = self.git_dir(request.repository.as_ref())?;
        let id = self.commit(&git_dir, &request.revision).await?;
        Ok(Response::new(FindCommitResponse { commit: id.map(|id| GitCommit { id }) }))
    }

    async fn tree_entry(
        &self,
        request: Request<TreeEntryRequest>,
    ) -> Result<Response<Self::TreeEntryStream>, Status> {
        let request = self.admit(Rpc::TreeEntry, request).await?;
        if request.path.is_empty() {
            return Err(Status::invalid_argument("empty Path"));
        }
        let git_dir = self.git_dir(request.repository.as_ref())?;
        let missing = || Status::not_found("tree entry not found");
        let commit = self.commit(&git_dir, &request.revision).await?.ok_or_else(missing)?;
        let listed = self.ls_tree(&git_dir, &[commit.as_bytes(), b"--", request.path.as_ref()]).await?;
        let entry = listed.unwrap_or_default().pop().ok_or_else(missing)?;
        let kind = match entry.kind.as_str() {
            "blob" => ObjectType::Blob,
            "tree" => ObjectType::Tree,
            _ => ObjectType::Commit,
        };
        let data = match kind {
            ObjectType::Blob => self.git(&git_dir, &["cat-file", "blob", &entry.oid]).await?,
            _ => None,
        };
        let data = Bytes::from(data.unwrap_or_default());
        let size = i64::try_from(data.len()).unwrap_or(i64::MAX);
        if request.max_size > 0 && size > request.max_size {
            return Err(Status::failed_precondition("object is larger than the maximum size"));
        }
        let first = TreeEntryResponse {
            r#type: kind.into(),
            oid: entry.oid,
            size,
            mode: entry.mode,
            data: data.slice(..data.len().min(CHUNK)),
        };
        let rest = (CHUNK..data.len()).step_by(CHUNK).map(move |from| TreeEntryResponse {
            data: data.slice(from..data.len().min(from + CHUNK)),
            ..Default::default()
        });
        messages(std::iter::once(first).chain(rest))
    }

    async fn get_tree_entries(
        &self,
        request: Request<GetTreeEntriesRequest>,
    ) -> Result<Response<Self::GetTreeEntriesStream>, Status> {
        let request = self.admit(Rpc::GetTreeEntries, request).await?;
        if request.path.is_empty() {
            return Err(Status::invalid_argument("empty Path"));
        }
        let git_dir = self.git_dir(request.repository.as_ref())?;
        let root = request.path.as_ref() == b".";
        let mut listed = None;
        if let Some(commit) = self.commit(&git_dir, &request.revision).await? {
            let mut tree = commit.into_bytes();
            if !root {
                tree.push(b':');
                tree.extend_from_slice(&request.path);
            }
            let flags: &[&[u8]] = if request.recursive { &[b"-r", b"-t"] } else { &[] };
            listed = self.ls_tree(&git_dir, &[flags, &[tree.as_slice()]].concat()).await?;
        }
        let listed = match (listed, self.options.generation) {
            (Some(listed), _) => listed,
            (None, Generation::V14_1) => Vec::new(),
            (None, Generation::V16Later) if request.recursive => {
                return Err(Status::not_found("invalid revision or path"));
            }
            (None, _) => return Err(Status::invalid_argument("invalid revision or path")),
        };
        let commit_oid = String::from_utf8_lossy(&request.revision).into_owned();
        let prefix = if root { Vec::new() } else { [request.path.as_ref(), b"/"].concat() };
        let entries: Vec<TreeEntry> = listed
            .into_iter()
            .map(|entry| TreeEntry {
                oid: entry.oid,
                path: [prefix.as_slice(), entry.path.as_slice()].concat().into(),
                r#type: match entry.kind.as_str() {
                    "blob" => EntryType::Blob,
                    "tree" => EntryType::Tree,
                    _ => EntryType::Commit,
                }
                .into(),
                mode: entry.mode,
                commit_oid: commit_oid.clone(),
            })
            .collect();
        let chunks: Vec<_> = entries.chunks(ENTRIES).map(<[TreeEntry]>::to_vec).collect();
        messages(chunks.into_iter().map(|entries| GetTreeEntriesResponse { entries }))
    }
}
