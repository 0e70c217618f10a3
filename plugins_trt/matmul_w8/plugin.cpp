// MatMulW8(x, codes, scales) -> y for TensorRT; README.md has the contract.
#include "../common/plugin.h"
#include "launch.h"

namespace vrwkv {
namespace {

enum Input { kX, kCodes, kScales, kInputs };

class MatMulOperator final : public Operator {
  public:
    std::unique_ptr<Operator> copy() const override { return std::make_unique<MatMulOperator>(*this); }
    char const* name() const override { return "MatMulW8"; }
    int32_t inputs() const override { return kInputs; }
    int32_t outputs() const override { return 1; }
    bool type_fits(int32_t at, DataType const* types) const override {
        if (at == kX) return code(types[kX]) >= 0;
        if (at == kCodes) return types[kCodes] == DataType::kINT8;
        return types[at] == types[kX] || (at == kScales && types[kScales] == DataType::kFLOAT);
    }
    char const* types_wanted() const override {
        return "x of a float type (0, 1 or 7), codes in int8, scales of x's type or float32";
    }
    DataType output_type(int32_t, DataType const* in) const override { return in[kX]; }
    bool shapes(DimsExprs const* in, DimsExprs* out) const override {
        if (in[kX].nbDims < 1 || in[kCodes].nbDims != 2) return false;
        out[0] = in[kX];
        out[0].d[in[kX].nbDims - 1] = in[kCodes].d[0];
        return true;
    }
    std::string mistake(PluginTensorDesc const* in) const override {
        Dims const &x = in[kX].dims, &codes = in[kCodes].dims, &scales = in[kScales].dims;
        if (x.nbDims < 1 || codes.nbDims != 2 || x.d[x.nbDims - 1] != codes.d[1] || codes.d[1] % 16 != 0)
            return "x is " + text(x) + " and codes are " + text(codes) +
                   "; wanted [..., K] and [N, K] with K a multiple of 16";
        if (scales.nbDims == 1 && scales.d[0] == codes.d[0]) return {};
        if (scales.nbDims == 2 && scales.d[0] == codes.d[0] && group(in) > 0) return {};
        return "scales are " + text(scales) + " for codes " + text(codes) +
               "; wanted [N], or [N, K / group] with groups of 32 or a multiple of 64";
    }
    size_t workspace(DataType const*, Dims const*) const override { return 0; }
    int32_t run(PluginTensorDesc const* in, void const* const* inputs, void* const* outputs, void*,
                void* stream) const override {
        Dims const& x = in[kX].dims;
        int64_t tokens = 1;
        for (int32_t i = 0; i + 1 < x.nbDims; i++) tokens *= x.d[i];
        return vrwkv_matmul_w8(code(in[kX].type), code(in[kScales].type), static_cast<int32_t>(tokens),
                               static_cast<int32_t>(in[kCodes].dims.d[1]), static_cast<int32_t>(in[kCodes].dims.d[0]),
                               group(in), inputs[kX], inputs[kCodes], inputs[kScales], outputs[0], stream);
    }

  private:
    // Inputs per scale; 0 for one scale per output, -1 where it does not come out even.
    static int32_t group(PluginTensorDesc const* in) {
        Dims const &codes = in[kCodes].dims, &scales = in[kScales].dims;
        if (scales.nbDims == 1) return 0;
        if (scales.d[1] < 1 || codes.d[1] % scales.d[1] != 0) return -1;
        int64_t const size = codes.d[1] / scales.d[1];
        return size == 32 || size % 64 == 0 ? static_cast<int32_t>(size) : -1;
    }
};

}  // namespace

std::unique_ptr<Operator> make_matmul_w8() { return std::make_unique<MatMulOperator>(); }

}  // namespace vrwkv
