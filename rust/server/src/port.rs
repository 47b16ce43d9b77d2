//! The port: claimed before models are loaded, opened when they are ready.

use std::net::SocketAddr;

use socket2::{Domain, Protocol, Socket, Type};

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
    pub(crate) fn claim(addr: SocketAddr) -> std::io::Result<Self> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        // On Windows this would let two servers share the port.
        #[cfg(unix)]
        socket.set_reuse_address(true)?;
        socket.bind(&addr.into())?;
        let addr = socket.local_addr()?.as_socket().unwrap_or(addr);
        Ok(Self { socket, addr })
    }

    /// Where it is.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Lets connections in.
    pub(crate) fn open(self) -> std::io::Result<tokio::net::TcpListener> {
        self.socket.set_nonblocking(true)?;
        self.socket.listen(BACKLOG)?;
        tokio::net::TcpListener::from_std(self.socket.into())
    }
}
