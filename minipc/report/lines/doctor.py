"""Lines of `minipc doctor`."""

from minipc.report.lines.text import Values


def of_doctor(values: Values) -> list[str]:
    cupy, folder, blas_variables = values["cupy"], values["folder"], values["blas_variables"]
    installed = " and ".join(f"{name} {number}" for name, number in cupy["distributions"].items())
    devices = ", ".join(
        f"{each['name']} with {each['bytes'] / 1e9:.0f} GB" for each in cupy["devices"]
    )
    graphs = f"; CUDA graphs: {cupy['graphs']}" if devices else ""
    return [
        f"minipc    {values['minipc']}",
        f"Python    {values['python']}, {values['platform']}",
        f"CPUs      {values['cpus']['usable']} usable of {values['cpus']['present']}",
        f"NumPy     {values['numpy']}, its loops for {values['simd'] or 'any processor'}",
        f"BLAS      {values['blas']}, kernel {values['kernel'] or 'unknown'}; one thread: "
        f"{'yes' if values['one_blas_thread'] else 'no'} "
        f"({_settings(blas_variables) or 'no variable set'})",
        f"SciPy     {values['scipy']}",
        f"h5py      {values['h5py']}, HDF5 {values['hdf5']}",
        f"click     {values['click']}",
        f"CuPy      {installed or 'not installed'}; {devices or cupy['reason']}{graphs}",
        "optional  "
        + ", ".join(f"{name} {number or 'absent'}" for name, number in values["optional"].items()),
        f"variables {_settings(values['variables']) or 'none'}",
        f"folder    locks: {folder['locks']}; posix_fallocate: {folder['posix_fallocate']}",
    ]


def _settings(values: Values) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())
