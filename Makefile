.PHONY: demo test test-debian12 test-kvm test-kernels test-root test-images test-images-vm test-networks-vm test-gvisor test-clients test-combinations check coverage bench compat docs
demo test test-debian12 test-kvm test-kernels test-root test-images test-images-vm test-networks-vm test-gvisor test-clients test-combinations check coverage bench compat docs:
	@scripts/$@
