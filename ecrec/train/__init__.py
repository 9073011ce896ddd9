"""The product behind ``ecrec train``: a DLRM on Criteo's data, on a local cluster, with kills and a report."""
