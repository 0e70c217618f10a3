// The glue between an Operator and TensorRT: counts, ranks, types and fields are checked here, once for all plugins.
#include "plugin.h"

#include <utility>

namespace vrwkv {
namespace {

std::vector<PluginField> as_fields(std::vector<Attribute> const& attributes) {
    std::vector<PluginField> fields;
    for (Attribute const& a : attributes) fields.emplace_back(a.name, &a.value, PluginFieldType::kINT32, 1);
    return fields;
}

PluginFieldCollection as_collection(std::vector<PluginField> const& fields) {
    return {static_cast<int32_t>(fields.size()), fields.empty() ? nullptr : fields.data()};
}

// ONNX integers are 64 bits wide; some parser versions pass them on so, others as 32 bits.
bool read_integer(PluginField const& field, int32_t* out) {
    if (field.data == nullptr || field.length != 1) return false;
    if (field.type == PluginFieldType::kINT32) memcpy(out, field.data, sizeof *out);
    else if (field.type == PluginFieldType::kINT64) {
        int64_t wide = 0;
        memcpy(&wide, field.data, sizeof wide);
        *out = static_cast<int32_t>(wide);
    } else return false;
    return true;
}

}  // namespace

Plugin::Plugin(std::unique_ptr<Operator> op)
    : mOp(std::move(op)), mFields(as_fields(mOp->attributes)), mCollection(as_collection(mFields)),
      mTimingId(std::string(mOp->name()) + "." + kVersion) {
    for (Attribute const& a : mOp->attributes) mTimingId += "." + std::to_string(a.value);
}

IPluginCapability* Plugin::getCapabilityInterface(PluginCapabilityType type) noexcept {
    switch (type) {
        case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
        case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuildV2*>(this);
        case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

IPluginV3* Plugin::clone() noexcept { return new (std::nothrow) Plugin(mOp->copy()); }

int32_t Plugin::configurePlugin(DynamicPluginTensorDesc const*, int32_t inputs, DynamicPluginTensorDesc const*,
                                int32_t outputs) noexcept {
    return inputs == mOp->inputs() && outputs == mOp->outputs() ? 0 : -1;
}

int32_t Plugin::getOutputDataTypes(DataType* out, int32_t outputs, DataType const* in, int32_t inputs) const noexcept {
    if (inputs != mOp->inputs() || outputs != mOp->outputs())
        return refuse(mOp->name(), "it has " + std::to_string(inputs) + " inputs and " + std::to_string(outputs) +
                                       " outputs; wanted " + std::to_string(mOp->inputs()) + " and " +
                                       std::to_string(mOp->outputs()));
    for (int32_t i = 0; i < inputs; i++)
        if (!mOp->type_fits(i, in))
            return refuse(mOp->name(), "input " + std::to_string(i) + " has data type " +
                                           std::to_string(static_cast<int32_t>(in[i])) + "; wanted " +
                                           mOp->types_wanted());
    for (int32_t i = 0; i < outputs; i++) out[i] = mOp->output_type(i, in);
    return 0;
}

int32_t Plugin::getOutputShapes(DimsExprs const* in, int32_t inputs, DimsExprs const*, int32_t, DimsExprs* out,
                                int32_t outputs, IExprBuilder&) noexcept {
    if (inputs != mOp->inputs() || outputs != mOp->outputs() || !mOp->shapes(in, out))
        return refuse(mOp->name(), "the inputs' number or ranks are wrong; its README has the contract");
    return 0;
}

bool Plugin::supportsFormatCombination(int32_t at, DynamicPluginTensorDesc const* all, int32_t inputs,
                                       int32_t outputs) noexcept {
    if (inputs != mOp->inputs() || outputs != mOp->outputs() || at >= inputs + outputs) return false;
    if (all[at].desc.format != TensorFormat::kLINEAR) return false;
    std::vector<DataType> types;
    for (int32_t i = 0; i <= at; i++) types.push_back(all[i].desc.type);
    return mOp->type_fits(at, types.data());
}

size_t Plugin::getWorkspaceSize(DynamicPluginTensorDesc const* in, int32_t inputs, DynamicPluginTensorDesc const*,
                                int32_t) const noexcept {
    std::vector<DataType> types;
    std::vector<Dims> shapes;
    for (int32_t i = 0; i < inputs; i++) {
        types.push_back(in[i].desc.type);
        shapes.push_back(in[i].max);
    }
    return mOp->workspace(types.data(), shapes.data());
}

int32_t Plugin::onShapeChange(PluginTensorDesc const* in, int32_t inputs, PluginTensorDesc const*,
                              int32_t outputs) noexcept {
    if (inputs != mOp->inputs() || outputs != mOp->outputs()) return -1;
    std::string const mistake = mOp->mistake(in);
    return mistake.empty() ? 0 : refuse(mOp->name(), mistake);
}

int32_t Plugin::enqueue(PluginTensorDesc const* in, PluginTensorDesc const*, void const* const* inputs,
                        void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
    return mOp->run(in, inputs, outputs, workspace, static_cast<void*>(stream));
}

Creator::Creator(std::unique_ptr<Operator> model)
    : mModel(std::move(model)), mFields(as_fields(mModel->attributes)), mCollection(as_collection(mFields)) {}

IPluginV3* Creator::createPlugin(AsciiChar const*, PluginFieldCollection const* fields, TensorRTPhase) noexcept {
    std::unique_ptr<Operator> op = mModel->copy();
    for (int32_t i = 0; fields != nullptr && i < fields->nbFields; i++)
        for (Attribute& a : op->attributes)
            if (strcmp(a.name, fields->fields[i].name) == 0 && !read_integer(fields->fields[i], &a.value)) {
                refuse(op->name(), std::string("attribute ") + a.name + " is not one integer");
                return nullptr;
            }
    std::string const wrong = op->attributes_wrong();
    if (!wrong.empty()) {
        refuse(op->name(), wrong);
        return nullptr;
    }
    return new (std::nothrow) Plugin(std::move(op));
}

}  // namespace vrwkv
