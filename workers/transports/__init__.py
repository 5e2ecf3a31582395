"""How bytes reach the other host: one contract (RDMA's shape), several carriers, one conformance suite."""
