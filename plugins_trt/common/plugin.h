// What all our plugins share: a V3 plugin is an Operator (types, shapes, launch) behind TensorRT's three interfaces.
#pragma once

#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "trt_abi.h"
#include "types.h"

namespace vrwkv {

using namespace nvinfer1;

constexpr char const* kNamespace = "vrwkv";
constexpr char const* kVersion = "1";

// TensorRT shows no text with a plugin's failure, and its logger's interface differs between 10 and 11: say it here.
inline int32_t refuse(char const* who, std::string const& what) {
    fprintf(stderr, "visualrwkv plugin %s: %s\n", who, what.c_str());
    return -1;
}

// Our number of an element type, or -1.
inline int32_t code(DataType type) {
    switch (type) {
        case DataType::kFLOAT: return static_cast<int32_t>(Type::f32);
        case DataType::kHALF: return static_cast<int32_t>(Type::f16);
        case DataType::kBF16: return static_cast<int32_t>(Type::bf16);
        default: return -1;
    }
}

inline std::string text(Dims const& dims) {
    std::string shape = "[";
    for (int32_t i = 0; i < dims.nbDims; i++) shape += (i ? ", " : "") + std::to_string(dims.d[i]);
    return shape + "]";
}

// An integer attribute with a default.
struct Attribute {
    char const* name;
    int32_t value;
};

// What tells one plugin from another. Stateless but for its attributes.
class Operator {
  public:
    virtual ~Operator() = default;
    virtual std::unique_ptr<Operator> copy() const = 0;
    virtual char const* name() const = 0;
    virtual int32_t inputs() const = 0;
    virtual int32_t outputs() const = 0;
    // Whether input or output `at` (outputs follow inputs) may have its type, given those before it.
    virtual bool type_fits(int32_t at, DataType const* types) const = 0;
    virtual char const* types_wanted() const = 0;
    virtual DataType output_type(int32_t output, DataType const* inputs) const = 0;
    // Sets the output shapes; false where ranks do not fit.
    virtual bool shapes(DimsExprs const* in, DimsExprs* out) const = 0;
    // Says what is wrong with shapes; empty if nothing is.
    virtual std::string mistake(PluginTensorDesc const* in) const = 0;
    virtual size_t workspace(DataType const* types, Dims const* shapes) const = 0;
    virtual int32_t run(PluginTensorDesc const* in, void const* const* inputs, void* const* outputs, void* workspace,
                        void* stream) const = 0;
    virtual int32_t aliased_input(int32_t) const { return -1; }
    virtual std::string attributes_wrong() const { return {}; }

    std::vector<Attribute> attributes;
};

class Plugin final : public IPluginV3, public IPluginV3OneCore, public IPluginV3OneBuildV2, public IPluginV3OneRuntime {
  public:
    explicit Plugin(std::unique_ptr<Operator> op);

    IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override;
    IPluginV3* clone() noexcept override;

    AsciiChar const* getPluginName() const noexcept override { return mOp->name(); }
    AsciiChar const* getPluginVersion() const noexcept override { return kVersion; }
    AsciiChar const* getPluginNamespace() const noexcept override { return kNamespace; }

    int32_t configurePlugin(DynamicPluginTensorDesc const* in, int32_t inputs, DynamicPluginTensorDesc const* out,
                            int32_t outputs) noexcept override;
    int32_t getOutputDataTypes(DataType* out, int32_t outputs, DataType const* in, int32_t inputs) const noexcept override;
    int32_t getOutputShapes(DimsExprs const* in, int32_t inputs, DimsExprs const* shape_in, int32_t shape_inputs,
                            DimsExprs* out, int32_t outputs, IExprBuilder& builder) noexcept override;
    bool supportsFormatCombination(int32_t at, DynamicPluginTensorDesc const* all, int32_t inputs,
                                   int32_t outputs) noexcept override;
    int32_t getNbOutputs() const noexcept override { return mOp->outputs(); }
    size_t getWorkspaceSize(DynamicPluginTensorDesc const* in, int32_t inputs, DynamicPluginTensorDesc const* out,
                            int32_t outputs) const noexcept override;
    char const* getTimingCacheID() noexcept override { return mTimingId.c_str(); }
    int32_t getAliasedInput(int32_t output) noexcept override { return mOp->aliased_input(output); }

    int32_t onShapeChange(PluginTensorDesc const* in, int32_t inputs, PluginTensorDesc const* out,
                          int32_t outputs) noexcept override;
    int32_t enqueue(PluginTensorDesc const* in, PluginTensorDesc const* out, void const* const* inputs,
                    void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
    IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return clone(); }
    PluginFieldCollection const* getFieldsToSerialize() noexcept override { return &mCollection; }

  private:
    std::unique_ptr<Operator> mOp;
    std::vector<PluginField> mFields;
    PluginFieldCollection mCollection;
    std::string mTimingId;
};

class Creator final : public IPluginCreatorV3One {
  public:
    explicit Creator(std::unique_ptr<Operator> model);
    IPluginV3* createPlugin(AsciiChar const* name, PluginFieldCollection const* fields,
                            TensorRTPhase phase) noexcept override;
    PluginFieldCollection const* getFieldNames() noexcept override { return &mCollection; }
    AsciiChar const* getPluginName() const noexcept override { return mModel->name(); }
    AsciiChar const* getPluginVersion() const noexcept override { return kVersion; }
    AsciiChar const* getPluginNamespace() const noexcept override { return kNamespace; }

  private:
    std::unique_ptr<Operator> mModel;
    std::vector<PluginField> mFields;
    PluginFieldCollection mCollection;
};

// One maker per plugin, in its folder.
std::unique_ptr<Operator> make_wkv7();
std::unique_ptr<Operator> make_wkv6();
std::unique_ptr<Operator> make_matmul_w8();
std::unique_ptr<Operator> make_read_state();

}  // namespace vrwkv
