//! Stub.
use crate::tunnel::stream::{RequestHalf, ResponseHalf, TunnelError};
#[derive(Debug)]
pub struct RemoteTunnel;
impl RemoteTunnel {
    pub fn broker(&self) -> &crate::fleet::PeerUrl {
        unreachable!()
    }
    pub fn carries_upgrades(&self) -> bool {
        false
    }
    pub fn carries_impersonation(&self) -> bool {
        false
    }
    pub async fn open(self) -> Result<(RequestHalf, ResponseHalf), TunnelError> {
        unreachable!()
    }
}
