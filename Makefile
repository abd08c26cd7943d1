.PHONY: demo test test-debian12 test-kvm test-kernels test-root check coverage bench docs
demo test test-debian12 test-kvm test-kernels test-root check coverage bench docs:
	@scripts/$@
