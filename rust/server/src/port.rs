//! The port: claimed before models are loaded, opened when they are ready.

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Protocol, Socket, Type};

use crate::limits::SEND_BUFFER_BYTES;

/// Connections the system keeps waiting while none is accepted.
const BACKLOG: i32 = 1024;

/// A claimed port. Connections to it are refused until it is opened.
#[derive(Debug)]
pub(crate) struct Port {
    socket: Socket,
    addr: SocketAddr,
}

impl Port {
    /// Claims the address, so that a port in use is known before anything slow happens.
    pub(crate) fn claim(addr: SocketAddr) -> io::Result<Self> {
        let socket = match bind(addr, false) {
            // Old connections may still be on their way out, which is no reason to wait. Only then:
            // two servers that both allow it can bind the same port until one of them listens.
            Err(error) if cfg!(unix) && error.kind() == io::ErrorKind::AddrInUse => {
                bind(addr, true)?
            }
            bound => bound?,
        };
        let addr = socket.local_addr()?.as_socket().unwrap_or(addr);
        Ok(Self { socket, addr })
    }

    /// Where it is.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Lets connections in.
    pub(crate) fn open(self) -> io::Result<tokio::net::TcpListener> {
        // Connections inherit what is set here, and the next server may bind while they are on
        // their way out. On Windows it would let two servers share the port.
        #[cfg(unix)]
        self.socket.set_reuse_address(true)?;
        self.socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
        self.socket.set_nonblocking(true)?;
        self.socket.listen(BACKLOG)?;
        tokio::net::TcpListener::from_std(self.socket.into())
    }
}

fn bind(addr: SocketAddr, reuse: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if reuse {
        socket.set_reuse_address(true)?;
    }
    socket.bind(&addr.into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[tokio::test]
    async fn a_claimed_port_is_taken_before_it_is_open() {
        let port = Port::claim((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let addr = port.addr();
        assert_eq!(Port::claim(addr).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert!(std::net::TcpStream::connect(addr).is_err());
        let listener = port.open().unwrap();
        assert_eq!(Port::claim(addr).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        // The side that closes first keeps the connection for a while.
        let client = std::net::TcpStream::connect(addr).unwrap();
        drop(listener.accept().await.unwrap());
        drop(listener);
        drop(client);
        let again = Port::claim(addr).unwrap();
        again.open().unwrap();
    }
}
