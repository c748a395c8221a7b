//! The packages in the nesting that their names ask for.

pub mod containerd {
    pub mod services {
        pub mod events {
            pub mod v1 {
                include!("containerd.services.events.v1.rs");
            }
        }
        pub mod images {
            pub mod v1 {
                include!("containerd.services.images.v1.rs");
            }
        }
    }
    pub mod types {
        include!("containerd.types.rs");
    }
}
pub mod google {
    pub mod protobuf {
        include!("google.protobuf.rs");
    }
}
