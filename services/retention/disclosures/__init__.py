"""What the register of disclosures keeps."""
